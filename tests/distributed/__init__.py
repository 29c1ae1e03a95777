"""Real processes over gloo: every mode of the trainer as a user runs it."""
