// Quantising a row of activations, and its product with AVX2.

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "bits.h"
#include "int8.h"

MIXTRAL_BEGIN_AVX2

namespace mixtral::int8 {

float activation_scale(float amax, int planes, float& inverse);
void quantize_row_avx512(const float* x, const Activations& out, int64_t row);

namespace {

// The largest q: 127 in both bytes, and for three far enough below that the rounding of the scale cannot pass it.
float largest(int planes) { return planes == 2 ? 32639.f : 127 * 65536.f; }

float largest_value(const float* x, int64_t in) {
    uint32_t amax = 0;  // as integers, NaN is above infinity, which is above the rest
    for (int64_t k = 0; k < in; ++k) {
        const uint32_t bits = as_bits(x[k]) & 0x7fffffff;
        amax = bits > amax ? bits : amax;
    }
    return as_float(amax);
}

int64_t sum_of(const int32_t* q, int64_t in) {
    int64_t sum = 0;
    for (int64_t k = 0; k < in; ++k) sum += q[k];
    return sum;
}

}  // namespace

float activation_scale(float amax, int planes, float& inverse) {
    inverse = 0;
    if (!std::isfinite(amax)) return std::numeric_limits<float>::quiet_NaN();
    if (amax < 0x1p-100f) return 0;
    inverse = largest(planes) / amax;
    return amax / largest(planes);
}

namespace {

void quantize_row_avx2(const float* x, const Activations& out, int64_t row) {
    const int64_t in = out.in, padded = round_up(in, STEP);
    float inverse;
    out.scales[row] = activation_scale(largest_value(x, in), out.planes, inverse);
    auto* high = (int16_t*)(out.data + row * out.row_bytes());  // for two planes the only half
    auto* low = high + padded;
    for (int64_t k = 0; k < padded; k += 8) {
        __m256 values;
        if (in - k >= 8) {
            values = _mm256_loadu_ps(x + k);
        } else {
            alignas(32) float part[8] = {};
            if (k < in) std::memcpy(part, x + k, (in - k) * 4);
            values = _mm256_load_ps(part);
        }
        const __m256i integers = _mm256_cvtps_epi32(_mm256_mul_ps(values, _mm256_set1_ps(inverse)));
        if (out.planes == 2) {
            _mm_storeu_si128((__m128i*)(high + k), _mm_packs_epi32(_mm256_castsi256_si128(integers),
                                                                   _mm256_extracti128_si256(integers, 1)));
            continue;
        }
        alignas(32) int32_t q[8];
        _mm256_store_si256((__m256i*)q, integers);
        for (int i = 0; i < 8; ++i) {
            low[k + i] = int16_t(q[i]);
            high[k + i] = int16_t((q[i] - low[k + i]) >> 16);
        }
    }
}

}  // namespace

void quantize_row(const float* x, const Activations& out, int64_t row) {
    // Of a row with the scale NaN the integers are of no account.
    (path() == Path::avx2 ? quantize_row_avx2 : quantize_row_avx512)(x, out, row);
}

namespace {

// The sum of eight int32 as int64.
int64_t sum_lanes(__m256i v) {
    alignas(32) int32_t lanes[8];
    _mm256_store_si256((__m256i*)lanes, v);
    return sum_of(lanes, 8);
}

constexpr int64_t FLUSH = 4096;  // values of `in` after which a lane of int32 could overflow: 256 sums of 2^23

// TOKENS rows times one row of weights.
template <int TOKENS, int PLANES>
void multiply_row(const int8_t* weight, float weight_scale, const Activations& x, const int32_t* index, float* y,
                  int64_t stride) {
    constexpr int HALVES = PLANES - 1;  // of q, int16
    const int64_t in = x.in, padded = round_up(in, STEP);
    const int16_t* rows[TOKENS];
    for (int t = 0; t < TOKENS; ++t) rows[t] = (const int16_t*)(x.data + index[t] * x.row_bytes());
    int64_t sums[TOKENS][HALVES] = {};
    for (int64_t start = 0; start < in; start += FLUSH) {
        const int64_t end = start + FLUSH < in ? start + FLUSH : in;
        __m256i acc[TOKENS][HALVES];
        for (int t = 0; t < TOKENS; ++t)
            for (int h = 0; h < HALVES; ++h) acc[t][h] = _mm256_setzero_si256();
        int64_t k = start;
        for (; k + 16 <= end; k += 16) {
            _mm_prefetch((const char*)(weight + k + 2048), _MM_HINT_T0);
            const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(weight + k)));
            for (int t = 0; t < TOKENS; ++t)
                for (int h = 0; h < HALVES; ++h)
                    acc[t][h] = _mm256_add_epi32(
                        acc[t][h], _mm256_madd_epi16(w, _mm256_loadu_si256((const __m256i*)(rows[t] + h * padded + k))));
        }
        for (int t = 0; t < TOKENS; ++t)
            for (int h = 0; h < HALVES; ++h) {
                sums[t][h] += sum_lanes(acc[t][h]);
                for (int64_t rest = k; rest < end; ++rest) sums[t][h] += int32_t(weight[rest]) * rows[t][h * padded + rest];
            }
    }
    for (int t = 0; t < TOKENS; ++t) {
        const int64_t sum = HALVES == 1 ? sums[t][0] : sums[t][0] * 65536 + sums[t][HALVES - 1];
        y[t * stride] = float(double(sum)) * (x.scales[index[t]] * weight_scale);
    }
}

#include "int8_blocks.inc"

}  // namespace

void multiply_rows_avx2(const Matrix& w, int64_t begin, int64_t end, const Activations& x, const int32_t* index,
                        int64_t rows, float* y, int64_t stride) {
    multiply_blocks(w, begin, end, x, index, rows, y, stride);
}

}  // namespace mixtral::int8

MIXTRAL_END
