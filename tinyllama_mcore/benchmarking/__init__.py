"""This trainer beside its peers and the floor: one workload, one table, measured in one run on one machine."""
