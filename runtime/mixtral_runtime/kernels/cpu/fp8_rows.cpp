// FP8: rounding activations, and the product with AVX2 in float32.

#include "fp8.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "bits.h"
#include "path.h"

MIXTRAL_BEGIN_AVX2

namespace mixtral::fp8 {
namespace {

// Eight values to the nearest E4M3, ties to even, saturating; NaN stays NaN. bfloat16 in the high halves.
inline __m256i round_e4m3(__m256 value) {
    // The second operand is what comes out for NaN.
    value = _mm256_max_ps(_mm256_set1_ps(-448), _mm256_min_ps(_mm256_set1_ps(448), value));
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    const __m256i moved = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff)));
    const __m256i normal = _mm256_and_si256(moved, _mm256_set1_epi32(int32_t(0xfff00000)));  // three bits of mantissa
    const __m256 unit = _mm256_set1_ps(0x1.8p14f);  // adding it rounds to a multiple of 2^-9
    const __m256i subnormal = _mm256_castps_si256(_mm256_sub_ps(_mm256_add_ps(value, unit), unit));
    const __m256i positive = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(as_bits(0x1p-6f))), positive);
    return _mm256_blendv_epi8(normal, subnormal, small);
}

// 64 values divided by the scale, zeros from `count` on, to bfloat16.
inline void round_step(const float* x, int64_t count, float scale, uint16_t* to) {
    float part[STEP] = {};
    if (count < STEP) x = static_cast<const float*>(std::memcpy(part, x, count * sizeof(float)));
    for (int64_t i = 0; i < STEP; i += 16) {
        const __m256 divisor = _mm256_set1_ps(scale);
        const __m256i a = round_e4m3(_mm256_div_ps(_mm256_loadu_ps(x + i), divisor));
        const __m256i b = round_e4m3(_mm256_div_ps(_mm256_loadu_ps(x + i + 8), divisor));
        const __m256i both = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_permute4x64_epi64(both, 0xd8));
    }
}

}  // namespace

void prepare(const float* x, int64_t k, float scale, int64_t token, const Tokens& to) {
    const int64_t column = token % to.columns;
    uint16_t* target = to.values + (to.order == Order::tiled ? (token - column) * to.k + 2 * column : token * to.k);
    for (int64_t at = 0; at < to.k; at += STEP) {
        uint16_t values[STEP];
        round_step(x + at, std::min(STEP, k - at), scale, values);
        if (to.order == Order::plain) {
            std::memcpy(target + at, values, sizeof values);
            continue;
        }
        const int64_t stride = to.order == Order::tiled ? 2 * to.columns : 2;
        for (int64_t i = 0; i < STEP / 2; ++i)  // pairs
            std::memcpy(target + (at / 2 + i) * stride, values + 16 * (i % 16 / 4) + 8 * (i / 16) + 2 * (i % 4), 4);
    }
}

namespace {

constexpr int64_t AHEAD = 1024;          // bytes of each row that are asked for before they are needed
constexpr float UNPACKED_UNIT = 256.0f;  // what `unpack` leaves out

// 8 E4M3 -> value / 256: float16 has one more bit of exponent, and a bias 8 higher. NaN is not expected and gives 480.
inline __m256 unpack(__m128i bytes) {
    const __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
    return _mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(int16_t(0xbf80))));
}

// 8 bytes, zeros from `size` on.
inline __m128i load_bytes(const uint8_t* from, int64_t size) {
    if (size >= 8) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, from, size);
    return bytes;
}

inline __m256 load_bfloat16(const uint16_t* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline float sum_lanes(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// Up to 4 rows times TOKENS tokens.
template <int TOKENS>
inline void multiply_few(const Matrix& w, int64_t row, int64_t rows, const uint16_t* x, int64_t stride, float* out) {
    __m256 sums[4][TOKENS];
    const uint8_t* weights[4];  // where a row is missing, the last one again
    for (int64_t i = 0; i < 4; ++i) {
        weights[i] = w.weight + (row + std::min(i, rows - 1)) * w.k;
        for (int t = 0; t < TOKENS; ++t) sums[i][t] = _mm256_setzero_ps();
    }
    for (int64_t at = 0; at < w.k; at += 8) {
        const int64_t ahead = at + AHEAD < w.k ? AHEAD : AHEAD + 3 * w.k;
        __m256 tokens[TOKENS];
#pragma GCC unroll 2
        for (int t = 0; t < TOKENS; ++t) tokens[t] = load_bfloat16(x + t * stride + at);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const __m128i bytes = load_bytes(weights[i] + at, w.k - at);
            if (at % 64 == 0) _mm_prefetch(weights[i] + at + ahead, _MM_HINT_T0);
            const __m256 values = unpack(bytes);
#pragma GCC unroll 2
            for (int t = 0; t < TOKENS; ++t) sums[i][t] = _mm256_fmadd_ps(values, tokens[t], sums[i][t]);
        }
    }
    for (int64_t i = 0; i < rows; ++i)
        for (int t = 0; t < TOKENS; ++t) out[t * ROWS + i] = sum_lanes(sums[i][t]) * UNPACKED_UNIT * w.scale;
}

#include "fp8_blocks.inc"

}  // namespace

void multiply_avx2(const Matrix& w, int64_t first_row, int64_t rows, const Tokens& x, int64_t first_token,
                   int64_t count, float* out) {
    multiply_blocks<2>(w, first_row, rows, x, first_token, count, out);
}

}  // namespace mixtral::fp8

MIXTRAL_END
