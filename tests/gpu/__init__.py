"""What needs an NVIDIA GPU. docs/evidence/ says when these last ran, where, and what they gave."""
