// mixtral_cpu::int8_quantize: weights to int8, bit for bit as `quantize_rows` in formats/int8.py, which has the rule.

#include <immintrin.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "bits.h"
#include "floats.h"
#include "parallel.h"
#include "path.h"
#include "scratch.h"

namespace mixtral::int8 {
namespace {

constexpr int64_t ROWS_AT_ONCE = 16;

MIXTRAL_BEGIN_AVX2

// The largest absolute value of [count], a multiple of 8; NaN if there is one.
float largest(const float* values, int64_t count) {
    __m256i bits = _mm256_setzero_si256();  // as integers, NaN is above infinity, which is above the rest
    for (int64_t i = 0; i < count; i += 8) {
        const __m256i next = _mm256_castps_si256(_mm256_load_ps(values + i));
        bits = _mm256_max_epu32(bits, _mm256_and_si256(next, _mm256_set1_epi32(0x7fffffff)));
    }
    alignas(32) uint32_t lanes[8];
    _mm256_store_si256((__m256i*)lanes, bits);
    return as_float(*std::max_element(lanes, lanes + 8));
}

// Eight values / divisor, half away from zero, from -128 to 127, as int32.
inline __m256i rounded(const float* values, __m256 divisor) {
    const __m256 below_half = _mm256_set1_ps(0x1.fffffep-2f), sign = _mm256_set1_ps(-0.f);
    const __m256 ratio = _mm256_div_ps(_mm256_load_ps(values), divisor);
    const __m256 moved = _mm256_add_ps(ratio, _mm256_or_ps(below_half, _mm256_and_ps(ratio, sign)));
    return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_set1_ps(127), _mm256_max_ps(_mm256_set1_ps(-128), moved)));
}

void quantize(const float* values, int64_t count, float divisor, int8_t* to) {
    const __m256 by = _mm256_set1_ps(divisor);
    for (int64_t i = 0; i < count; i += 32) {
        const __m256i low = _mm256_packs_epi32(rounded(values + i, by), rounded(values + i + 8, by));
        const __m256i high = _mm256_packs_epi32(rounded(values + i + 16, by), rounded(values + i + 24, by));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing takes the halves alternately
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        if (count - i >= 32) {
            _mm256_storeu_si256((__m256i*)(to + i), bytes);
        } else {
            alignas(32) int8_t part[32];
            _mm256_store_si256((__m256i*)part, bytes);
            std::memcpy(to + i, part, count - i);
        }
    }
}

MIXTRAL_END

using torch::stable::Tensor;

// weight [channels, in] -> values int8 [channels, in] and scales [channels] in the weight's dtype, all contiguous.
void quantize_rows(Tensor weight, Tensor values, Tensor scales) {
    const int64_t channels = weight.size(0), in = weight.size(1), padded = (in + 31) / 32 * 32;
    const ScalarType dtype = weight.scalar_type();
    const void* from = weight.const_data_ptr();
    auto* to = (int8_t*)values.mutable_data_ptr();
    void* scale_to = scales.mutable_data_ptr();
    for_each((channels + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, [&](int64_t block) {
        thread_local Scratch memory;
        auto* row = (float*)memory.bytes(padded * 4);
        for (int64_t n = block * ROWS_AT_ONCE; n < std::min(channels, (block + 1) * ROWS_AT_ONCE); ++n) {
            load_floats(from, dtype, n * in, in, row);
            std::fill(row + in, row + padded, 0.f);
            const float scale = largest(row, padded) * (1.f / 128);
            quantize(row, in, scale == 0 ? 1.f : scale, to + n * in);
            store_floats(&scale, 1, scale_to, dtype, n);
        }
    });
}

}  // namespace
}  // namespace mixtral::int8

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def("int8_quantize(Tensor weight, Tensor(a!) values, Tensor(b!) scales) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) { m.impl("int8_quantize", TORCH_BOX(&mixtral::int8::quantize_rows)); }
