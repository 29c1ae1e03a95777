"""Level 5: Hugging Face names, layouts, tokenizer and config, in both directions. No GPU, no process group."""
