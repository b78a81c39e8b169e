// Threads: PyTorch's own pool and number of threads. The library is loaded after PyTorch, so that its OpenMP is the same.
#pragma once

#include <omp.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace mixtral {

inline int threads() { return int(torch::stable::get_num_threads()); }

// task(i) for 0 <= i < count, in any order on any thread; the results must not depend on which.
template <class Task>
void for_each(int64_t count, const Task& task) {
    const int team = threads();
    if (count <= 1 || team == 1 || omp_in_parallel()) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace mixtral
