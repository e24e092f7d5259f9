"""The answer path: the graph of stages, where it runs, and the HTTP door in front of it."""
