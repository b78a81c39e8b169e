// Conversions and SwiGLU, with AVX2: it has the bits of every wider path.

#include "floats.h"

#include <immintrin.h>

#include <cstring>

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
inline float exponential(float x) {
    const float bounded = x < -87.f ? -87.f : (x > 88.f ? 88.f : x);  // a NaN stays
    const float whole = (bounded * 1.44269504f + 12582912.f) - 12582912.f;  // to nearest, by the float's own rounding
    const float rest = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
    float sum = 1.f / 5040;
    sum = sum * rest + 1.f / 720;
    sum = sum * rest + 1.f / 120;
    sum = sum * rest + 1.f / 24;
    sum = sum * rest + 1.f / 6;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.f;
    sum = sum * rest + 1.f;
    const int32_t bits = (int32_t(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return sum * power;
}

}  // namespace

void swiglu(float* gate, const float* up, int64_t count) {
    for (int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.f + exponential(-gate[i])) * up[i];
}

}  // namespace mixtral

MIXTRAL_END
