// FP8 for any number of tokens: AMX. Weights are unpacked a panel at a time to tiles [16, 32] in the first-level cache
// and are the left matrix. A sum is one chain of tiles along `in`.

#include "fp8.h"

#include <immintrin.h>

#include <algorithm>

#include "amx.h"
#include "path.h"

MIXTRAL_BEGIN_FP8

namespace mixtral::fp8 {
namespace {

#include "fp8_unpack.inc"
#include "transpose.inc"

constexpr int64_t PANEL = 256;         // of `in`, unpacked at a time
constexpr int64_t AHEAD = 512;         // bytes of each row that are asked for before they are needed
constexpr int64_t VALUES = 16 * 32;    // of a tile

struct alignas(64) Work {
    uint16_t weight[PANEL / 32][2][VALUES];  // [step, first or second 16 rows]
    float totals[BLOCK / TILE][2][16][16];   // [tile, first or second 16 rows, row, token]
};

// What is missing of a tile keeps what was there: its products are not stored.
void unpack_panel(const Matrix& w, int64_t first_row, int64_t rows, int64_t at, Work& work) {
    const int64_t end = std::min(at + PANEL, w.k), ahead = at + AHEAD < w.k ? AHEAD : AHEAD + (ROWS - 1) * w.k;
    for (int64_t row = 0; row < rows; ++row) {
        const uint8_t* from = w.weight + (first_row + row) * w.k;
        uint16_t* to = work.weight[0][row / 16] + row % 16 * 32;
        for (int64_t k = at; k < end; k += STEP, to += 4 * VALUES) {
            __m512i first, second;
            unpack(load_step(from, k, w.k), first, second);
            _mm_prefetch(from + k + ahead, _MM_HINT_T0);
            _mm512_store_si512(to, first);
            _mm512_store_si512(to + 2 * VALUES, second);
        }
    }
}

// Activations and sums have `columns` tokens.
void load_tiles_of(int64_t columns) {
    TileConfig config;
    for (int tile : {0, 1, 2, 3, 6, 7}) config.row_bytes[tile] = uint16_t(4 * columns);
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

inline void zero() {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
}

inline void restore(const Work& work, int64_t tile, bool both) {
    tile_load<0>(work.totals[tile][0], 64);
    tile_load<1>(work.totals[tile][1], 64);
    if (both) {
        tile_load<2>(work.totals[tile + 1][0], 64);
        tile_load<3>(work.totals[tile + 1][1], 64);
    }
}

inline void save(Work& work, int64_t tile, bool both) {
    tile_store<0>(work.totals[tile][0], 64);
    tile_store<1>(work.totals[tile][1], 64);
    if (both) {
        tile_store<2>(work.totals[tile + 1][0], 64);
        tile_store<3>(work.totals[tile + 1][1], 64);
    }
}

// One panel times one or two tiles of tokens.
template <bool BOTH>
inline void multiply_panel(const uint16_t* x, int64_t tile_values, int64_t columns, int64_t steps, const Work& work) {
    for (int64_t step = 0; step < steps; ++step, x += 32 * columns) {
        tile_load<4>(work.weight[step][0], 64);
        tile_load<6>(x, 4 * columns);
        tile_multiply_bf16<0, 4, 6>();
        tile_load<5>(work.weight[step][1], 64);
        tile_multiply_bf16<1, 5, 6>();
        if constexpr (BOTH) {
            tile_load<7>(x + tile_values, 4 * columns);
            tile_multiply_bf16<2, 4, 7>();
            tile_multiply_bf16<3, 5, 7>();
        }
    }
}

void store(const Matrix& w, int64_t tile, int64_t count, int64_t rows, const Work& work, float* out) {
    for (int half = 0; half < 2; ++half) {
        __m512i totals[16];
        for (int i = 0; i < 16; ++i) totals[i] = _mm512_load_si512(work.totals[tile][half][i]);
        transpose16(totals);
        const auto mask = __mmask16((1u << std::clamp<int64_t>(rows - 16 * half, 0, 16)) - 1);
        for (int64_t t = 0; t < count; ++t) {
            const __m512 total = _mm512_mul_ps(_mm512_castsi512_ps(totals[t]), _mm512_set1_ps(UNPACKED_UNIT));
            _mm512_mask_storeu_ps(out + t * ROWS + 16 * half, mask, _mm512_mul_ps(total, _mm512_set1_ps(w.scale)));
        }
    }
}

}  // namespace

void multiply_amx(const Matrix& w, int64_t first_row, int64_t rows, const Tokens& x, int64_t first_token, int64_t count,
                  float* out) {
    const int64_t tiles = (count + TILE - 1) / TILE, tile_values = x.columns * x.k;
    const uint16_t* values = x.values + first_token * x.k;
    Work work;
    load_tiles_of(x.columns);
    zero();
    for (int64_t at = 0; at < w.k; at += PANEL) {
        const int64_t steps = (std::min(PANEL, w.k - at) + STEP - 1) / STEP * 2;
        unpack_panel(w, first_row, rows, at, work);
        const uint16_t* from = values + at * x.columns;
        if (tiles == 1) {  // its sums stay in the tiles
            multiply_panel<false>(from, tile_values, x.columns, steps, work);
            continue;
        }
        for (int64_t tile = 0; tile < tiles; tile += 2, from += 2 * tile_values) {
            const bool both = tile + 1 < tiles;
            at == 0 ? zero() : restore(work, tile, both);
            (both ? multiply_panel<true> : multiply_panel<false>)(from, tile_values, x.columns, steps, work);
            save(work, tile, both);
        }
    }
    if (tiles == 1) save(work, 0, false);
    release_tiles();
    for (int64_t tile = 0; tile < tiles; ++tile)
        store(w, tile, std::min(TILE, count - tile * TILE), rows, work, out + tile * TILE * ROWS);
}

}  // namespace mixtral::fp8

MIXTRAL_END
