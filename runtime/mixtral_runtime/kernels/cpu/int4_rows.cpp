// 4-bit weights: activations as integers, and the product with AVX2.

#include "int4.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bits.h"
#include "floats.h"
#include "path.h"

MIXTRAL_BEGIN_AVX2

namespace mixtral::int4 {
namespace {

constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, ties to even
constexpr int64_t AHEAD = 1024;       // bytes of each row that are asked for before they are needed
constexpr int TILE_PAIRS = 4;
constexpr int64_t GROUPS = 16;  // whose scales are converted at a time

// The bits of the largest magnitude; as integers, NaN is above infinity and infinity above the rest.
uint32_t largest_bits(const float* x) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < GROUP; ++i) largest = std::max(largest, as_bits(x[i]) & 0x7fffffff);
    return largest;
}

// One group: v, its planes, and the sum of v.
int32_t to_planes(const float* x, float inverse, int32_t* v, int8_t (&planes)[2][GROUP]) {
    int32_t sum = 0;
    for (int64_t i = 0; i < GROUP; ++i) v[i] = int32_t(as_bits(x[i] * inverse + ROUND) - as_bits(ROUND));
    for (int64_t i = 0; i < GROUP; ++i) sum += v[i];
    for (int64_t i = 0; i < GROUP; ++i) {
        const auto low = int8_t(v[i]);
        planes[0][i] = int8_t((v[i] - low) >> 8);
        planes[1][i] = low;
    }
    return sum;
}

}  // namespace

void prepare(const float* x, int64_t token, const Tokens& to, float* rest) {
    const int64_t groups = to.k / GROUP, column = token % TILE;
    for (int64_t group = 0; group < groups; ++group, x += GROUP) {
        const uint32_t bits = largest_bits(x);
        const float largest = as_float(bits);
        const bool finite = bits < as_bits(std::numeric_limits<float>::infinity());
        // Below 2^-100 the reciprocal could overflow; that is 0 in any sum.
        const float inverse = finite && largest > 0x1p-100f ? LARGEST / largest : 0;
        const float scale = finite ? largest / LARGEST : std::numeric_limits<float>::quiet_NaN();
        int32_t v[GROUP];
        int8_t planes[2][GROUP];
        const int32_t sum = to_planes(x, inverse, v, planes);
        if (rest)
            for (int64_t i = 0; i < GROUP; ++i) rest[group * GROUP + i] = std::fma(-float(v[i]), scale, x[i]);
        const int64_t at = to.tiled ? (token / TILE * groups + group) * TILE + column : token * groups + group;
        to.scales[at] = scale;
        to.sums[at] = sum;
        if (to.tiled) {
            int8_t* target = to.planes + (at - column) * 2 * GROUP + 4 * column;
            for (const auto& plane : planes)
                for (int64_t i = 0; i < GROUP; i += 4, target += 4 * TILE) std::memcpy(target, plane + i, 4);
        } else {
            std::memcpy(to.planes + at * 2 * GROUP, planes, sizeof planes);
        }
    }
}

namespace {

inline __m256i low_nibbles(__m256i bytes) {
    return _mm256_xor_si256(_mm256_and_si256(bytes, _mm256_set1_epi8(0x0f)), _mm256_set1_epi8(0x08));
}

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// Sums of 16-bit integers, four of which are at most 4 * 2 * 15 * 128 -> 256 * high + low.
inline __m256i join(__m256i high, __m256i low) {
    const __m256i ones = _mm256_set1_epi16(1);
    return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high, ones), 8), _mm256_madd_epi16(low, ones));
}

// 8 rows of one group times one token's planes: sums of (value + 8) * v.
inline __m256i group_sums(const uint8_t* const* rows, int64_t at, int64_t ahead, const int8_t* planes) {
    __m256i sums[2 * TILE_PAIRS];
#pragma GCC unroll 4
    for (int i = 0; i < TILE_PAIRS; ++i) {
        __m256i even_high = _mm256_setzero_si256(), even_low = even_high, odd_high = even_high, odd_low = even_high;
        for (int64_t j = 0; j < GROUP; j += 32) {
            const __m256i bytes = load(rows[i] + at + j), high = load(planes + j), low = load(planes + GROUP + j);
            const __m256i even = low_nibbles(bytes), odd = low_nibbles(_mm256_srli_epi16(bytes, 4));
            even_high = _mm256_add_epi16(even_high, _mm256_maddubs_epi16(even, high));
            even_low = _mm256_add_epi16(even_low, _mm256_maddubs_epi16(even, low));
            odd_high = _mm256_add_epi16(odd_high, _mm256_maddubs_epi16(odd, high));
            odd_low = _mm256_add_epi16(odd_low, _mm256_maddubs_epi16(odd, low));
        }
        _mm_prefetch(rows[i] + at + ahead, _MM_HINT_T0);
        _mm_prefetch(rows[i] + at + ahead + 64, _MM_HINT_T0);
        sums[2 * i] = join(even_high, even_low);
        sums[2 * i + 1] = join(odd_high, odd_low);
    }
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[4], sums[5]), _mm256_hadd_epi32(sums[6], sums[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

}  // namespace

void multiply_avx2(const Matrix& w, int64_t first_pair, int64_t pairs, const Tokens& x, int64_t first_token,
                   int64_t count, float* out) {
    const int64_t groups = w.k / GROUP;
    for (int64_t tile = 0; tile < pairs; tile += TILE_PAIRS) {
        const int64_t first = first_pair + tile, valid = 2 * std::min<int64_t>(TILE_PAIRS, pairs - tile);
        const uint8_t* rows[TILE_PAIRS];  // where a pair is missing, the last one again
        for (int64_t i = 0; i < TILE_PAIRS; ++i) rows[i] = w.weight + (first + std::min(i, valid / 2 - 1)) * w.k;
        __m256 total[BLOCK];
        for (int64_t t = 0; t < count; ++t) total[t] = _mm256_setzero_ps();
        float factors[2 * TILE_PAIRS][GROUPS] = {};
        for (int64_t group = 0; group < groups; ++group) {
            if (group % GROUPS == 0)
                for (int64_t i = 0; i < valid; ++i)
                    load_floats(w.scales, w.dtype, (2 * first + i) * groups + group, std::min(GROUPS, groups - group),
                                factors[i]);
            alignas(32) float scales[2 * TILE_PAIRS];
            alignas(32) int32_t offsets[2 * TILE_PAIRS] = {};
            for (int64_t i = 0; i < 2 * TILE_PAIRS; ++i) scales[i] = factors[i][group % GROUPS];
            for (int64_t i = 0; i < valid; ++i)
                offsets[i] = (w.offsets ? w.offsets[(2 * first + i) * groups + group] : 0) - 8;
            const int64_t at = group * GROUP, ahead = at + AHEAD < w.k ? AHEAD : AHEAD + (TILE_PAIRS - 1) * w.k;
            for (int64_t t = 0; t < count; ++t) {
                const int64_t of = (first_token + t) * groups + group;
                const __m256i offset = _mm256_mullo_epi32(_mm256_load_si256(reinterpret_cast<__m256i*>(offsets)),
                                                          _mm256_set1_epi32(x.sums[of]));
                const __m256i exact = _mm256_add_epi32(group_sums(rows, at, ahead, x.planes + of * 2 * GROUP), offset);
                const __m256 scale = _mm256_mul_ps(_mm256_load_ps(scales), _mm256_set1_ps(x.scales[of]));
                total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, total[t]);
            }
        }
        for (int64_t t = 0; t < count; ++t) {
            alignas(32) float sums[2 * TILE_PAIRS];
            _mm256_store_ps(sums, total[t]);
            std::copy(sums, sums + valid, out + t * ROWS + 2 * tile);
        }
    }
}

}  // namespace mixtral::int4

MIXTRAL_END
