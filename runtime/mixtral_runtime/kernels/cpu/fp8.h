// Products of E4M3 weights with activations rounded to E4M3. bfloat16 holds both exactly, and float32 their products,
// so only sums are rounded. Each path has one order of summation, whatever the number of tokens.
#pragma once

#include <cstdint>

namespace mixtral::fp8 {

constexpr int64_t ROWS = 32;    // rows of a weight that one call multiplies at most, and the rows of `out`
constexpr int64_t TILE = 16;    // tokens
constexpr int64_t BLOCK = 128;  // tokens that one call multiplies at most
constexpr int64_t STEP = 64;    // `in` is filled up to a multiple, with zeros

struct Matrix {
    const uint8_t* weight;  // [n, k]
    int64_t n, k;
    float scale;             // of the product: the weight's times the activations'
    float activation_scale;
};

// Tokens as bfloat16, ready to be multiplied. plain: [token, k]. shuffled: the same with each 64 in the order in which
// bytes are unpacked, 0 to 7, 16 to 23, 32 to 39, 48 to 55, then 8 to 15 and so on. tiled: [tile, k / 32, 16 pairs,
// columns, 2] in that order of pairs.
enum class Order { plain, shuffled, tiled };

struct Tokens {
    uint16_t* values;
    int64_t k;        // a multiple of STEP
    int64_t columns;  // tokens of a tile: 16, fewer if there are fewer in all
    Order order;
};

// x: [k], divided by the scale and rounded to E4M3 as PyTorch does it, saturating at 448; NaN stays NaN.
void prepare(const float* x, int64_t k, float scale, int64_t token, const Tokens& to);

// Rows from first_row on times `count` tokens from first_token on, of a tile if there are tiles -> out [count, ROWS].
using Multiply = void(const Matrix&, int64_t first_row, int64_t rows, const Tokens&, int64_t first_token, int64_t count,
                      float* out);
Multiply multiply_avx2;    // plain
Multiply multiply_avx512;  // shuffled; needs AVX512_BF16, VBMI and GFNI as well
Multiply multiply_amx;     // tiled

}  // namespace mixtral::fp8

#define MIXTRAL_BEGIN_FP8 \
    _Pragma("GCC push_options") _Pragma( \
        "GCC target(\"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi,gfni\")")
