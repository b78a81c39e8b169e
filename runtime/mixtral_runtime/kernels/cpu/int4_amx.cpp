// 4-bit weights for many tokens: AMX. Weights are unpacked to tiles [16, 64] in the first-level cache and are the left
// matrix; a packed row's low nibbles go to one tile, the high ones to another.

#include "int4.h"

#include <immintrin.h>

#include <algorithm>

#include "amx.h"
#include "path.h"

MIXTRAL_BEGIN_AVX512

namespace mixtral::int4 {
namespace {

#include "transpose.inc"
#include "int4_factors.inc"

constexpr int64_t TILE_BYTES = 1024;
constexpr int64_t AHEAD = 512;  // bytes of each row that are asked for before they are needed

struct alignas(64) Work {
    uint8_t weight[2][2][TILE_BYTES];        // [half of the group, even or odd rows]
    int32_t products[2][2][16][16];          // [even or odd, plane, pair, token]
    float totals[BLOCK / TILE][2][16][16];   // [tile, even or odd, pair, token]
    float scales[16][2][16];                 // [group, even or odd, pair]
    int32_t offsets[16][2][16];              // the same, less 8
};

// SUM [16][16] int32 += LEFT [16][64] uint8 times RIGHT [16 quadruples][16][4] int8.
template <int SUM, int LEFT, int RIGHT>
inline void tile_multiply_uint8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

// Scales and offsets of 16 groups from `group` on.
void load_factors(const Matrix& w, int64_t first_pair, int64_t pairs, int64_t group, Work& work) {
    for (int odd = 0; odd < 2; ++odd) {
        __m512 scales[16];
        load_scales(w, 2 * first_pair + odd, 2, pairs, group, scales);
        for (int i = 0; i < 16; ++i) _mm512_store_ps(work.scales[i][odd], scales[i]);
        if (w.offsets) {
            __m512i offsets[16];
            load_offsets(w, 2 * first_pair + odd, 2, pairs, group, offsets);
            for (int i = 0; i < 16; ++i) _mm512_store_si512(work.offsets[i][odd], offsets[i]);
        }
    }
}

// One group of `pairs` packed rows. What is missing of a tile keeps what was there: its products are not stored.
inline void unpack(const uint8_t* weight, int64_t k, int64_t pairs, int64_t ahead, Work& work) {
    for (int64_t i = 0; i < pairs; ++i) {
        for (int half = 0; half < 2; ++half) {
            const uint8_t* from = weight + i * k + 64 * half;
            const __m512i bytes = _mm512_loadu_si512(from);
            _mm_prefetch(from + ahead, _MM_HINT_T0);
            _mm512_store_si512(work.weight[half][0] + 64 * i, low_nibbles(bytes));
            _mm512_store_si512(work.weight[half][1] + 64 * i, low_nibbles(_mm512_srli_epi16(bytes, 4)));
        }
    }
}

// One group of one tile of tokens: both planes times even and odd rows.
inline void multiply_group(const int8_t* planes, Work& work) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        tile_load<4>(work.weight[half][0], 64);
        tile_load<6>(planes + half * TILE_BYTES, 64);
        tile_multiply_uint8<0, 4, 6>();
        tile_load<7>(planes + (2 + half) * TILE_BYTES, 64);
        tile_multiply_uint8<1, 4, 7>();
        tile_load<5>(work.weight[half][1], 64);
        tile_multiply_uint8<2, 5, 6>();
        tile_multiply_uint8<3, 5, 7>();
    }
    tile_store<0>(work.products[0][0], 64);
    tile_store<1>(work.products[0][1], 64);
    tile_store<2>(work.products[1][0], 64);
    tile_store<3>(work.products[1][1], 64);
}

template <bool OFFSETS>
inline void accumulate(const float* token_scales, const int32_t* token_sums, int64_t group, int64_t tile, Work& work) {
    const __m512 token_scale = _mm512_load_ps(token_scales);
    const __m512i sum = _mm512_load_si512(token_sums);
    const __m512i less = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 3));  // -8 * sum
    for (int odd = 0; odd < 2; ++odd) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            const __m512i offset =
                OFFSETS ? _mm512_mullo_epi32(sum, _mm512_set1_epi32(work.offsets[group][odd][i])) : less;
            const __m512i high = _mm512_slli_epi32(_mm512_load_si512(work.products[odd][0][i]), 8);
            const __m512i low = _mm512_add_epi32(_mm512_load_si512(work.products[odd][1][i]), offset);
            const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(work.scales[group][odd][i]), token_scale);
            float* total = work.totals[tile][odd][i];
            const __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(high, low));
            _mm512_store_ps(total, _mm512_fmadd_ps(exact, scale, _mm512_load_ps(total)));
        }
    }
}

void store(int64_t tile, int64_t count, int64_t pairs, const Work& work, float* out) {
    __m512i even[16], odd[16];
    for (int i = 0; i < 16; ++i) {
        even[i] = _mm512_load_si512(work.totals[tile][0][i]);
        odd[i] = _mm512_load_si512(work.totals[tile][1][i]);
    }
    transpose16(even);
    transpose16(odd);
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const auto mask = uint32_t((uint64_t(1) << (2 * pairs)) - 1);
    for (int64_t t = 0; t < count; ++t, out += ROWS) {
        _mm512_mask_storeu_epi32(out, __mmask16(mask), _mm512_permutex2var_epi32(even[t], first, odd[t]));
        _mm512_mask_storeu_epi32(out + 16, __mmask16(mask >> 16), _mm512_permutex2var_epi32(even[t], second, odd[t]));
    }
}

}  // namespace

void multiply_amx(const Matrix& w, int64_t first_pair, int64_t pairs, const Tokens& x, int64_t first_token,
                  int64_t count, float* out) {
    const int64_t groups = w.k / GROUP, tiles = (count + TILE - 1) / TILE;
    const uint8_t* weight = w.weight + first_pair * w.k;
    Work work;
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (auto& rows : work.totals[tile])
            for (auto& row : rows) _mm512_store_ps(row, _mm512_setzero_ps());
    load_tiles();
    for (int64_t group = 0; group < groups; ++group) {
        if (group % 16 == 0) load_factors(w, first_pair, pairs, group, work);
        const int64_t at = group * GROUP;
        unpack(weight + at, w.k, pairs, at + AHEAD < w.k ? AHEAD : AHEAD + (PAIRS - 1) * w.k, work);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t of = (first_token / TILE + tile) * groups + group;
            multiply_group(x.planes + of * 4 * TILE_BYTES, work);
            const auto add = w.offsets ? accumulate<true> : accumulate<false>;
            add(x.scales + of * TILE, x.sums + of * TILE, group % 16, tile, work);
        }
    }
    release_tiles();
    for (int64_t tile = 0; tile < tiles; ++tile)
        store(tile, std::min(TILE, count - tile * TILE), pairs, work, out + tile * TILE * ROWS);
}

}  // namespace mixtral::int4

MIXTRAL_END
