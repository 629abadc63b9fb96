"""The CUDA engine: kernels in Triton, and the rule that chooses between them."""
