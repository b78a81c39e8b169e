"""Kernels in the Triton language for NVIDIA GPUs from SM80 on.

They are plain functions over tensors: nothing waits for the host and what is launched depends on shapes alone, so that
a CUDA graph can record them. Each runs in Triton's interpreter on a CPU too: so they are tested without a GPU.
"""
