"""Level 0: what a run is. Standard library only, so that every refusal works where torch is not installed."""
