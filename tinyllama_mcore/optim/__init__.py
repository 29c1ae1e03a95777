"""Level 2: parameter groups and the learning-rate schedule."""
