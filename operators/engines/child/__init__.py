"""A model in a process of its own, locked in: both its ends, the frames between them, the sandbox."""
