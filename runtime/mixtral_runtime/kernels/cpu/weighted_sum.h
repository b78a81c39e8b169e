// The last step of a mixture of experts: of each token its experts' answers, times their weights, summed.
#pragma once

#include <algorithm>

#include "floats.h"
#include "parallel.h"
#include "routing.h"

namespace mixtral {

// y [rows of the routing][hidden], which is changed; weights [tokens, top_k] -> result [tokens, hidden].
inline void weighted_sum(float* y, const Routing& routing, const float* weights, int64_t tokens, int64_t top_k,
                         int64_t hidden, void* result, ScalarType dtype) {
    constexpr int64_t GROUP = 16;  // tokens of a task
    for_each((tokens + GROUP - 1) / GROUP, [&](int64_t group) {
        for (int64_t t = group * GROUP; t < std::min(tokens, (group + 1) * GROUP); ++t) {
            float* total = y + routing.rows[t * top_k] * hidden;
            for (int64_t n = 0; n < hidden; ++n) total[n] *= weights[t * top_k];
            for (int64_t slot = 1; slot < top_k; ++slot) {  // in fixed order: a sum's bits depend on it
                const float* answer = y + routing.rows[t * top_k + slot] * hidden;
                const float weight = weights[t * top_k + slot];
                for (int64_t n = 0; n < hidden; ++n) total[n] += answer[n] * weight;
            }
            store_floats(total, hidden, result, dtype, t * hidden);
        }
    });
}

}  // namespace mixtral
