"""Floor 1: the arithmetic of a decoder layer that is limited by memory, each piece in one pass: plain torch, and Triton."""
