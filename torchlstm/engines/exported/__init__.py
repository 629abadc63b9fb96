"""A layer in programs for others: as an ONNX node, and as core ATen."""
