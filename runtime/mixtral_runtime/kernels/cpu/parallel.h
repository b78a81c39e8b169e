// Threads: PyTorch's own pool and number of threads. The library is loaded after PyTorch, so that its OpenMP is the same.
#pragma once

#include <omp.h>
#include <torch/csrc/stable/ops.h>

namespace mixtral {

// For `#pragma omp parallel num_threads(...)`. 1 inside a parallel region.
inline int threads() { return omp_in_parallel() ? 1 : int(torch::stable::get_num_threads()); }

}  // namespace mixtral
