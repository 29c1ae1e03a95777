"""TinyLlama pretraining in Megatron-core layers, sharded by DeepSpeed; see README.md for the reading order."""

__version__ = "0.1.0"
