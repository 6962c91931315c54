"""Triton kernels that several ops share. Nothing here is imported before the first call on a GPU."""
