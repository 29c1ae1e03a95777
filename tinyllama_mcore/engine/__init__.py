"""Floor 3: one protocol, `ShardingEngine`, and the sharding libraries behind it."""
