"""The CPU kernel: C, built as the optional extension `_kernel`; see kernel.h."""
