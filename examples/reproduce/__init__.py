"""The paper's recipe in small, on real text and code: three ways to one curve, and the paper's own bug planted."""
