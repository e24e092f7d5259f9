"""The encoder in ONNX Runtime, and what BERT encoders have in common."""
