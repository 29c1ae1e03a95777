"""Floor 2: from raw text to token batches: tokenizer, preprocessing, indexed datasets, blend, loader."""
