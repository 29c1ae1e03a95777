"""Level 5: what a layout needs and how fast it is, known before a GPU is held. Only the standard library."""
