"""Floor 5: plots and reports, made from the files that a run leaves behind."""
