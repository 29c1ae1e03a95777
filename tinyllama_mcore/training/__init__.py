"""Level 5: the loop, evaluation, metrics and loggers."""
