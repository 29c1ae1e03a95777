"""What needs an NVIDIA GPU. docs/performance.md says when these last ran, where, and what they gave."""
