// Products of 4-bit weights, in groups of 128 along `in`, with 16-bit activations.
//
// In each group an activation is v * scale, v from -32639 to 32639 in two signed bytes, v = 256 * high + low. A nibble
// is read as value + 8, from 0 to 15, so that a group's product is an exact integer,
//   sum((value + offset) * v) = 256 * sum((value + 8) * high) + sum((value + 8) * low) + (offset - 8) * sum(v),
// below 2^27. A row's product is a chain of fused multiply-adds of these with the groups' scales, in ascending order.
// Every path and every number of tokens does just this, so they agree bit for bit.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

namespace mixtral::int4 {

constexpr int64_t GROUP = 128;
constexpr int64_t PAIRS = 16;         // pairs of weight rows that one call multiplies at most
constexpr int64_t ROWS = 2 * PAIRS;   // the rows of `out`
constexpr int64_t TILE = 16;          // tokens
constexpr int64_t BLOCK = 128;        // tokens that one call multiplies at most
constexpr float LARGEST = 127 * 256 + 127;

struct Matrix {
    const uint8_t* weight;  // [n / 2, k]; the low nibble is the even row's
    const void* scales;     // [n, k / 128]
    torch::headeronly::ScalarType dtype;  // of the scales
    const int8_t* offsets;  // [n, k / 128], null where all are zero
    int64_t n, k;
};

// Tokens, ready to be multiplied. In tiles: planes [tile, group, plane, half, 16, 16 tokens, 4], scales and sums
// [tile, group, 16 tokens]; else planes [token, group, plane, 128], scales and sums [token, group].
struct Tokens {
    int8_t* planes;
    float* scales;
    int32_t* sums;
    int64_t k;
    bool tiled;
};

// x: [k]. rest: [k], what the integers leave of x, or null. NaN and infinities make a group's scale NaN.
void prepare(const float* x, int64_t token, const Tokens& to, float* rest);

// Rows 2 * first_pair and the following 2 * pairs times `count` tokens from first_token on, of a tile if there are
// tiles -> out [count, ROWS].
using Multiply = void(const Matrix&, int64_t first_pair, int64_t pairs, const Tokens&, int64_t first_token,
                      int64_t count, float* out);
Multiply multiply_avx2, multiply_avx512;
Multiply multiply_amx;  // tiles only

}  // namespace mixtral::int4
