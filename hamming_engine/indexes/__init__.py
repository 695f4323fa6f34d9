"""Data structures over codes, built on the kernels."""
