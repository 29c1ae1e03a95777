"""Floor 5: what a layout needs and how fast it is, known before a GPU is held. The standard library alone."""
