"""Level 2: raw text to datasets: readers, filters, tokenizing in many processes, merging. Never on a GPU."""
