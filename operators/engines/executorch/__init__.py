"""Programs of ExecuTorch: encoder, networks, language models."""
