"""The CPU engine: kernels in plain C for AVX-512, AVX2 and whatever else there is."""
