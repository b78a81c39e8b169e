// 4-bit weights for few tokens, and for any number where there is no AMX: AVX512-VNNI.

#include "int4.h"

#include <immintrin.h>

#include <algorithm>

#include "path.h"

MIXTRAL_BEGIN_AVX512

namespace mixtral::int4 {
namespace {

#include "transpose.inc"
#include "int4_factors.inc"

constexpr int TILE_PAIRS = 8;
constexpr int64_t AHEAD = 1024;  // bytes of each row that are asked for before they are needed

// Lane i is the sum of v[i].
inline __m512i sum_lanes(const __m512i (&v)[16]) {
    __m512i fours[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512i* four = v + 4 * i;
        const __m512i a =
            _mm512_add_epi32(_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[0], four[1]));
        const __m512i b =
            _mm512_add_epi32(_mm512_unpacklo_epi32(four[2], four[3]), _mm512_unpackhi_epi32(four[2], four[3]));
        fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    const auto halves = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    };
    return halves(halves(fours[0], fours[1]), halves(fours[2], fours[3]));
}

// 16 rows of one group times one token's planes: sums of (value + 8) * v. rows: where each pair begins, from `weight`.
inline __m512i group_sums(const uint8_t* weight, const uint8_t* ahead, const int64_t (&rows)[TILE_PAIRS],
                          const int8_t* planes) {
    const __m512i high0 = _mm512_loadu_si512(planes), high1 = _mm512_loadu_si512(planes + 64);
    const __m512i low0 = _mm512_loadu_si512(planes + 128), low1 = _mm512_loadu_si512(planes + 192);
    __m512i v[16];
#pragma GCC unroll 8
    for (int i = 0; i < TILE_PAIRS; ++i) {
        const __m512i w0 = _mm512_loadu_si512(weight + rows[i]), w1 = _mm512_loadu_si512(weight + rows[i] + 64);
        _mm_prefetch(ahead + rows[i], _MM_HINT_T0);
        _mm_prefetch(ahead + rows[i] + 64, _MM_HINT_T0);
        const __m512i even0 = low_nibbles(w0), even1 = low_nibbles(w1);
        const __m512i odd0 = low_nibbles(_mm512_srli_epi16(w0, 4)), odd1 = low_nibbles(_mm512_srli_epi16(w1, 4));
        __m512i even = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even0, high0);
        __m512i odd = _mm512_dpbusd_epi32(_mm512_setzero_si512(), odd0, high0);
        even = _mm512_slli_epi32(_mm512_dpbusd_epi32(even, even1, high1), 8);
        odd = _mm512_slli_epi32(_mm512_dpbusd_epi32(odd, odd1, high1), 8);
        v[2 * i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(even, even0, low0), even1, low1);
        v[2 * i + 1] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(odd, odd0, low0), odd1, low1);
    }
    return sum_lanes(v);
}

}  // namespace

void multiply_avx512(const Matrix& w, int64_t first_pair, int64_t pairs, const Tokens& x, int64_t first_token,
                     int64_t count, float* out) {
    const int64_t groups = w.k / GROUP;
    for (int64_t tile = 0; tile < pairs; tile += TILE_PAIRS) {
        const uint8_t* weight = w.weight + (first_pair + tile) * w.k;
        const int64_t row = 2 * (first_pair + tile), valid = 2 * std::min<int64_t>(TILE_PAIRS, pairs - tile);
        int64_t rows[TILE_PAIRS];  // where a pair is missing, the last one again
        for (int64_t i = 0; i < TILE_PAIRS; ++i) rows[i] = std::min(i, valid / 2 - 1) * w.k;
        __m512 total[BLOCK];
        for (int64_t t = 0; t < count; ++t) total[t] = _mm512_setzero_ps();
        __m512 scales[16];  // of 16 groups
        __m512i offsets[16];
        for (int64_t group = 0; group < groups; ++group) {
            if (group % 16 == 0) {
                load_scales(w, row, 1, valid, group, scales);
                load_offsets(w, row, 1, valid, group, offsets);
            }
            const int64_t at = group * GROUP, next = at + AHEAD;
            const uint8_t* ahead = weight + (next < w.k ? next : next + (TILE_PAIRS - 1) * w.k);
            for (int64_t t = 0; t < count; ++t) {
                const int64_t of = (first_token + t) * groups + group;
                const __m512i offset = _mm512_mullo_epi32(offsets[group % 16], _mm512_set1_epi32(x.sums[of]));
                const __m512i exact =
                    _mm512_add_epi32(group_sums(weight + at, ahead, rows, x.planes + of * 2 * GROUP), offset);
                const __m512 scale = _mm512_mul_ps(scales[group % 16], _mm512_set1_ps(x.scales[of]));
                total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, total[t]);
            }
        }
        for (int64_t t = 0; t < count; ++t)
            _mm512_mask_storeu_ps(out + t * ROWS + 2 * tile, __mmask16((1u << valid) - 1), total[t]);
    }
}

}  // namespace mixtral::int4

MIXTRAL_END
