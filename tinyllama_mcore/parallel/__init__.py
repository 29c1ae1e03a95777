"""Level 1: who talks to whom. Process groups, the launcher's environment, and what Megatron-core lacks on a CPU."""
