"""A layer in exported programs: as an ONNX node, and as core ATen operators."""
