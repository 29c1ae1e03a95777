"""Level 6: what a model knows, by lm-evaluation-harness, beside the paper's tables. The door of `lm_eval`."""
