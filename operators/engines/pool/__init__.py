"""Which models are loaded: budget in bytes, leases, eviction, memory pressure."""
