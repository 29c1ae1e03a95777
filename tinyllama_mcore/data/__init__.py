"""Level 1: the files of a dataset and what its ids mean: `.bin/.idx` pairs, receipts, tokenizer."""
