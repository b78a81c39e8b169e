// Products of int8 weights, one scale for each output channel, with 16-bit or float32 activations.
//
// A row of activations becomes integers, x = scale * q, which are cut into planes of signed bytes: two for the 16-bit
// dtypes, q = 256 * high + low, and three for float32. The sums of q * weight are exact in integers, so every path, every
// blocking and every number of rows gives the same bits.
#pragma once

#include <cstdint>

#include "path.h"

namespace mixtral::int8 {

constexpr int64_t MAX_IN = 65536;  // sums of 255 * 128 stay below 2^31
constexpr int64_t TILE = 16;       // rows of weights, and tokens, of one AMX tile
constexpr int64_t STEP = 64;       // values of `in` that are multiplied at once

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Matrix {
    const int8_t* values;  // [out, in]
    const float* scales;   // [out]
    int64_t out, in;
};

// Quantised activations. A row takes row_bytes(); in "tiles" 16 tokens take the place of their rows.
struct Activations {
    int8_t* data;
    float* scales;  // [rows]
    int64_t* sums;  // [rows] of q, for AVX-512 alone
    int64_t in;
    int planes;

    int64_t row_bytes() const { return bytes(in, planes); }
    // As int8, or for AVX2 as int16 halves of q, zeros up to a multiple of STEP.
    static int64_t bytes(int64_t in, int planes) { return round_up(in, STEP) * (planes == 2 ? 2 : 4); }
};

// x [in] float32 -> row `row` of q. A row with an infinity or NaN gets the scale NaN; one without a value of 2^-100, 0.
void quantize_row(const float* x, const Activations& q, int64_t row);

// y[i * stride + n - begin] = row index[i] of x times row n of the weight, begin <= n < end, i < rows.
using MultiplyRows = void (*)(const Matrix& weight, int64_t begin, int64_t end, const Activations& x,
                              const int32_t* index, int64_t rows, float* y, int64_t stride);
void multiply_rows_avx2(const Matrix&, int64_t, int64_t, const Activations&, const int32_t*, int64_t, float*, int64_t);
void multiply_rows_avx512(const Matrix&, int64_t, int64_t, const Activations&, const int32_t*, int64_t, float*, int64_t);

inline MultiplyRows multiply_rows() { return path() == Path::avx2 ? multiply_rows_avx2 : multiply_rows_avx512; }

// Tiles: [in / 64][plane][16 quadruples of in][16 tokens][4 of in] bytes for each group of 16 tokens.

// Rows index[0 .. rows) of x, at most 16, -> the tile at `row` of `tiles`.
void pack_tile(const Activations& x, const int32_t* index, int64_t rows, const Activations& tiles, int64_t row);

// x [in][16 tokens] float32 -> the tile at `row`, quantised as quantize_row does it.
void quantize_tile(const float* x, const Activations& tiles, int64_t row);

// Tokens of the tiles from `row` on times rows begin <= n < end of the weight.
// y: [tokens][stride] with the first at n = begin, or if `transposed` for each tile [end - begin][16 tokens], the tiles
// `stride` apart.
void multiply_tiles(const Matrix& weight, int64_t begin, int64_t end, const Activations& tiles, int64_t row,
                    int64_t tokens, float* y, int64_t stride, bool transposed);

}  // namespace mixtral::int8
