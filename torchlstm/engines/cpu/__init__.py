"""The CPU engine: a kernel in plain C for AVX-512, AVX2 and other CPUs."""
