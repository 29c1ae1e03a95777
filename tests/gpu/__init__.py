"""What needs an NVIDIA GPU. docs/evidence/performance.md says when these last ran, where, and what they gave."""
