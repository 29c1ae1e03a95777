"""TinyLlama pretraining with Megatron-core and DeepSpeed; see README.md for the reading order."""

__version__ = "0.1.0"
