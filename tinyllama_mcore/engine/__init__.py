"""Level 3: `ShardingEngine`, and the two libraries behind it."""
