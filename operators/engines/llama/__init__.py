"""Engines and encoder of llama.cpp, as they run inside a child, and the slots of its server."""
