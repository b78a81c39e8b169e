// Conversions and SwiGLU, with AVX2: it has the bits of every wider path.

#include "floats.h"

#include <immintrin.h>

#include <cstring>
#include <initializer_list>

#include "path.h"

MIXTRAL_BEGIN_AVX2

namespace mixtral {

void load_floats(const void* from, ScalarType dtype, int64_t start, int64_t count, float* to) {
    if (dtype == ScalarType::Float) {
        std::memcpy(to, (const float*)from + start, count * 4);
        return;
    }
    const uint16_t* halves = (const uint16_t*)from + start;
    if (dtype == ScalarType::BFloat16) {
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t bits = uint32_t(halves[i]) << 16;
            std::memcpy(to + i, &bits, 4);
        }
        return;
    }
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(halves + i))));
    for (; i < count; ++i) to[i] = _cvtsh_ss(halves[i]);
}

void store_floats(const float* from, int64_t count, void* to, ScalarType dtype, int64_t start) {
    if (dtype == ScalarType::Float) {
        std::memcpy((float*)to + start, from, count * 4);
        return;
    }
    uint16_t* halves = (uint16_t*)to + start;
    if (dtype == ScalarType::BFloat16) {
        for (int64_t i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, from + i, 4);
            const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            halves[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
        }
        return;
    }
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i*)(halves + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < count; ++i) halves[i] = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}

namespace {

// exp(x) for x <= 88, 0 below -87: the nearest power of two, times the Taylor series of what is left (below 2^-22).
inline __m256 exponential(__m256 x) {
    // With a NaN these two give their second operand.
    const __m256 bounded = _mm256_min_ps(_mm256_set1_ps(88), _mm256_max_ps(_mm256_set1_ps(-87), x));
    const __m256 shift = _mm256_set1_ps(12582912);  // rounds to the nearest integer: 1.5 * 2^23
    const __m256 whole = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(bounded, _mm256_set1_ps(1.44269504f)), shift), shift);
    const __m256 high = _mm256_mul_ps(whole, _mm256_set1_ps(0.693359375f));  // ln 2 in two parts
    const __m256 low = _mm256_mul_ps(whole, _mm256_set1_ps(2.12194440e-4f));
    const __m256 rest = _mm256_add_ps(_mm256_sub_ps(bounded, high), low);
    __m256 sum = _mm256_set1_ps(1.f / 5040);
    for (const float next : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
        sum = _mm256_add_ps(_mm256_mul_ps(sum, rest), _mm256_set1_ps(next));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}

inline __m256 swiglu(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1), opposite = _mm256_xor_ps(gate, _mm256_set1_ps(-0.f));
    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, exponential(opposite))), up);
}

}  // namespace

void swiglu(float* gate, const float* up, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(gate + i, swiglu(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == count) return;
    alignas(32) float rest[2][8] = {};
    std::memcpy(rest[0], gate + i, (count - i) * 4);
    std::memcpy(rest[1], up + i, (count - i) * 4);
    _mm256_store_ps(rest[0], swiglu(_mm256_load_ps(rest[0]), _mm256_load_ps(rest[1])));
    std::memcpy(gate + i, rest[0], (count - i) * 4);
}

}  // namespace mixtral

MIXTRAL_END
