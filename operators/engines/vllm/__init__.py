"""vLLM, by URL or as a child in its own environment."""
