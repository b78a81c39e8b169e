// Between float32 and the dtypes of activations.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace mixtral {

using torch::headeronly::ScalarType;

// `count` values of float32, float16 or bfloat16 from the `start`-th on.
void load_floats(const void* from, ScalarType dtype, int64_t start, int64_t count, float* to);

// Rounded to nearest, ties to even.
void store_floats(const float* from, int64_t count, void* to, ScalarType dtype, int64_t start);

// gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]. Of single operations alone, so the same bits on every path.
void swiglu(float* gate, const float* up, int64_t count);

}  // namespace mixtral
