"""Headers of GGUF files, read by us before any engine does, and the memory they ask for."""
