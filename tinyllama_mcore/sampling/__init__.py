"""Level 2: datasets to what a run trains on: epochs, blend, the order of samples, micro-batches."""
