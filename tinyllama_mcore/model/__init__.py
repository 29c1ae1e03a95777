"""Level 2: the model in Megatron-core layers, its logical parameters, its FLOPs."""
