// FP8 where there is no AMX: AVX512_BF16. Sixteen partial sums along `in`, added up at the end.

#include "fp8.h"

#include <immintrin.h>

#include <algorithm>

#include "path.h"

MIXTRAL_BEGIN_FP8

namespace mixtral::fp8 {
namespace {

#include "fp8_unpack.inc"

constexpr int64_t AHEAD = 1024;  // bytes of each row that are asked for before they are needed

inline __m512 add_product(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// Up to 4 rows times TOKENS tokens.
template <int TOKENS>
inline void multiply_few(const Matrix& w, int64_t row, int64_t rows, const uint16_t* x, int64_t stride, float* out) {
    __m512 sums[4][TOKENS];
    const uint8_t* weights[4];  // where a row is missing, the last one again
    for (int64_t i = 0; i < 4; ++i) {
        weights[i] = w.weight + (row + std::min(i, rows - 1)) * w.k;
        for (int t = 0; t < TOKENS; ++t) sums[i][t] = _mm512_setzero_ps();
    }
    for (int64_t at = 0; at < w.k; at += STEP) {
        const int64_t ahead = at + AHEAD < w.k ? AHEAD : AHEAD + 3 * w.k;
        __m512i first[4], second[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            unpack(load_step(weights[i], at, w.k), first[i], second[i]);
            _mm_prefetch(weights[i] + at + ahead, _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; ++t) {
            const uint16_t* from = x + t * stride + at;
            const __m512i x0 = _mm512_loadu_si512(from), x1 = _mm512_loadu_si512(from + 32);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sums[i][t] = add_product(add_product(sums[i][t], first[i], x0), second[i], x1);
        }
    }
    for (int64_t i = 0; i < rows; ++i)
        for (int t = 0; t < TOKENS; ++t) out[t * ROWS + i] = _mm512_reduce_add_ps(sums[i][t]) * UNPACKED_UNIT * w.scale;
}

#include "fp8_blocks.inc"

}  // namespace

void multiply_avx512(const Matrix& w, int64_t first_row, int64_t rows, const Tokens& x, int64_t first_token,
                     int64_t count, float* out) {
    multiply_blocks<4>(w, first_row, rows, x, first_token, count, out);
}

}  // namespace mixtral::fp8

MIXTRAL_END
