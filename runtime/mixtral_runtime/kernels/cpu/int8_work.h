// What the linear and the experts of int8 share: their matrices, activations and the size of their tasks.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "floats.h"
#include "int8.h"
#include "parallel.h"
#include "scratch.h"

namespace mixtral::int8 {

// From this many tokens on, tiles that are not full are faster than rows one by one.
constexpr int64_t TILE_TOKENS = 4;

// Matrix `index` of `count` in weight int8 [count * out, in] and scales [count * out].
inline Matrix matrix_of(const torch::stable::Tensor& weight, const torch::stable::Tensor& scales, int64_t index,
                        int64_t count) {
    const int64_t in = weight.size(-1), out = weight.numel() / in / count;
    return {(const int8_t*)weight.const_data_ptr() + index * out * in,
            (const float*)scales.const_data_ptr() + index * out, out, in};
}

// Room for `rows` rows. `dtype`: of the activations that they are made of.
inline Activations activations(Scratch& memory, int64_t rows, int64_t in, ScalarType dtype) {
    const int planes = dtype == ScalarType::Float ? 3 : 2;
    const int64_t bytes = rows * Activations::bytes(in, planes), scales = round_up(rows * 4, 64);
    auto* data = (int8_t*)memory.bytes(bytes + scales + rows * 8);
    return {data, (float*)(data + bytes), (int64_t*)(data + bytes + scales), in, planes};
}

// Row `token` of x -> row `row`.
inline void quantize_token(const void* x, ScalarType dtype, int64_t token, const Activations& to, int64_t row) {
    if (dtype == ScalarType::Float) return quantize_row((const float*)x + token * to.in, to, row);
    thread_local Scratch memory;
    auto* floats = (float*)memory.bytes(to.in * 4);
    load_floats(x, dtype, token * to.in, to.in, floats);
    quantize_row(floats, to, row);
}

// How many rows of a matrix [out, in] are one task. Few tokens: 128 KiB of weights, which are read once. Many: enough
// rows that the activations are worth fetching, few enough that every thread has some.
inline int64_t rows_at_once(int64_t out, int64_t in, int64_t tokens) {
    const int64_t share = round_up(out / (4 * threads()) + 1, 32);
    if (tokens <= 2 * TILE) return std::clamp<int64_t>((128 << 10) / in / 32 * 32, 32, 256);
    return std::clamp<int64_t>(share, 32, 256);
}

}  // namespace mixtral::int8
