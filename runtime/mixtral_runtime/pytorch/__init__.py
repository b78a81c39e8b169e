"""The PyTorch runtime: one model on a CPU or a CUDA GPU, in-flight batching, paged KV cache."""
