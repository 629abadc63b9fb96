"""The CUDA engine's kernels in Triton; the only place that imports triton."""
