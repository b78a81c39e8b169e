// Quantising a row of activations, and int8 products of a few rows, with AVX512-VNNI.

#include <immintrin.h>

#include "bits.h"
#include "int8.h"

MIXTRAL_BEGIN_AVX512

namespace mixtral::int8 {

float activation_scale(float amax, int planes, float& inverse);

void quantize_row_avx512(const float* x, const Activations& out, int64_t row) {
    const int64_t in = out.in, padded = round_up(in, STEP);
    const auto load = [&](int64_t k) {
        return in - k >= 16 ? _mm512_loadu_ps(x + k) : _mm512_maskz_loadu_ps(k < in ? (1 << (in - k)) - 1 : 0, x + k);
    };
    __m512i bits = _mm512_setzero_si512();
    for (int64_t k = 0; k < in; k += 16)
        bits = _mm512_max_epu32(bits, _mm512_and_si512(_mm512_castps_si512(load(k)), _mm512_set1_epi32(0x7fffffff)));
    float inverse;
    out.scales[row] = activation_scale(as_float(_mm512_reduce_max_epu32(bits)), out.planes, inverse);
    const __m512 factor = _mm512_set1_ps(inverse);
    int8_t* data = out.data + row * out.row_bytes();
    __m512i sums = _mm512_setzero_si512();  // [8] int64
    for (int64_t k = 0; k < padded; k += 16) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(load(k), factor));
        sums = _mm512_add_epi64(sums, _mm512_cvtepi32_epi64(_mm512_castsi512_si256(q)));
        sums = _mm512_add_epi64(sums, _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(q, 1)));
        for (int plane = out.planes - 1; plane >= 0; --plane) {
            const __m128i bytes = _mm512_cvtepi32_epi8(q);
            _mm_storeu_si128((__m128i*)(data + plane * padded + k), bytes);
            q = _mm512_srai_epi32(_mm512_sub_epi32(q, _mm512_cvtepi8_epi32(bytes)), 8);
        }
    }
    out.sums[row] = _mm512_reduce_add_epi64(sums);
}

namespace {

constexpr int64_t AHEAD = 4096;  // bytes of weights that are asked for before they are needed: the rows follow each other

template <int TOKENS, int PLANES>
inline void multiply_step(__m512i w, const int8_t* const* rows, int64_t padded, int64_t k,
                          __m512i (&acc)[TOKENS][PLANES]) {
    // The instruction takes unsigned times signed bytes, so the weights are moved up by 128; what that adds is
    // 128 times the sum of the row of activations.
    const __m512i above = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 3
        for (int p = 0; p < PLANES; ++p)
            acc[t][p] = _mm512_dpbusd_epi32(acc[t][p], above, _mm512_loadu_si512(rows[t] + p * padded + k));
}

template <int TOKENS, int PLANES>
void multiply_row(const int8_t* weight, float weight_scale, const Activations& x, const int32_t* index, float* y,
                  int64_t stride) {
    const int64_t in = x.in, padded = round_up(in, STEP);
    const int8_t* rows[TOKENS];
    for (int t = 0; t < TOKENS; ++t) rows[t] = x.data + index[t] * x.row_bytes();
    constexpr int CHAINS = TOKENS * PLANES <= 3 ? 4 : 2;  // sums at once: one would wait for its own last product
    __m512i acc[CHAINS][TOKENS][PLANES] = {};
    int64_t k = 0;
    for (; k + CHAINS * STEP <= in; k += CHAINS * STEP) {
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; ++c) {
            _mm_prefetch((const char*)(weight + k + c * STEP + AHEAD), _MM_HINT_T0);
            multiply_step<TOKENS, PLANES>(_mm512_loadu_si512(weight + k + c * STEP), rows, padded, k + c * STEP, acc[c]);
        }
    }
    for (; k < in; k += STEP) {  // a masked load reads nothing behind the matrix
        const __mmask64 mask = in - k >= STEP ? ~__mmask64(0) : (__mmask64(1) << (in - k)) - 1;
        multiply_step<TOKENS, PLANES>(_mm512_maskz_loadu_epi8(mask, weight + k), rows, padded, k, acc[0]);
    }
    for (int t = 0; t < TOKENS; ++t) {
        int64_t sum = 0;
        for (int p = 0; p < PLANES; ++p) {
            for (int c = 1; c < CHAINS; ++c) acc[0][t][p] = _mm512_add_epi32(acc[0][t][p], acc[c][t][p]);
            sum = sum * 256 + _mm512_reduce_add_epi32(acc[0][t][p]);
        }
        sum -= 128 * x.sums[index[t]];
        y[t * stride] = float(double(sum)) * (x.scales[index[t]] * weight_scale);
    }
}

#include "int8_blocks.inc"

}  // namespace

void multiply_rows_avx512(const Matrix& w, int64_t begin, int64_t end, const Activations& x, const int32_t* index,
                          int64_t rows, float* y, int64_t stride) {
    multiply_blocks(w, begin, end, x, index, rows, y, stride);
}

}  // namespace mixtral::int8

MIXTRAL_END
