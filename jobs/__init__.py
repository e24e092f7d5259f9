"""The learning path and batch work. Jobs meet the answer path only in topics, stores and checkpoints."""
