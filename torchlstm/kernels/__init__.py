"""The kernels, by device: plain C for the CPU, Triton for CUDA."""
