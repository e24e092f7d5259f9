"""The stages of RuvLLM, one file each, and the small things they stand on.

Importing this package loads nothing heavy: engines, stores and torch load in ``start()``.
"""

FLOW = ("embed", "search", "expand", "route", "attend", "generate", "judge")
"""The order of the stages; the graph is tested against it, and nothing else restates it."""
