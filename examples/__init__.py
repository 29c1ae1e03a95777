"""What a reader starts first: the training script, the demo, the reproduction, launch files of clusters."""
