"""What can be wrong with a job's machines, found before a run: versions, clocks, disks, data, network, GPUs."""
