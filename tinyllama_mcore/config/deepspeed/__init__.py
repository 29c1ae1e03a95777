"""The DeepSpeed JSON: a table of its keys, and the reading, checking and filling of a file by it."""
