"""Level 5: what people look at: documents and samples of data, plots and figures of a run."""
