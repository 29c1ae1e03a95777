"""Level 1: what a decoder layer computes between its matrix products, each piece in one pass over memory."""
