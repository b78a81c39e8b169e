// int8 products of many rows with AMX: the weights as they are in memory are the left matrix, the activations the right.

#include <immintrin.h>

#include <cstring>

#include "amx.h"
#include "int8.h"
#include "scratch.h"

MIXTRAL_BEGIN_AVX512

namespace mixtral::int8 {

float activation_scale(float amax, int planes, float& inverse);

namespace {

constexpr int64_t TILE_BYTES = 1024;
constexpr int64_t AHEAD = 8 * STEP;  // how far before its use a weight is asked for
constexpr int64_t BLOCK_IN = 1024;   // of `in`: one group's activations stay in the first-level cache
constexpr int64_t FEW = 3;           // groups of tokens

// In place, 16 vectors of 16 values.
inline void transpose(__m512i (&v)[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

inline int8_t* tile_at(const Activations& tiles, int64_t row) { return tiles.data + row * tiles.row_bytes(); }

}  // namespace

void pack_tile(const Activations& x, const int32_t* index, int64_t rows, const Activations& tiles, int64_t row) {
    const int64_t padded = round_up(x.in, STEP);
    int8_t* to = tile_at(tiles, row);
    for (int64_t k = 0; k < padded; k += STEP)
        for (int plane = 0; plane < x.planes; ++plane, to += TILE_BYTES) {
            __m512i v[TILE];
            for (int64_t i = 0; i < TILE; ++i)
                v[i] = i < rows ? _mm512_loadu_si512(x.data + index[i] * x.row_bytes() + plane * padded + k)
                                : _mm512_setzero_si512();
            transpose(v);
            for (int64_t i = 0; i < TILE; ++i) _mm512_store_si512(to + i * 64, v[i]);
        }
    for (int64_t i = 0; i < TILE; ++i) tiles.scales[row + i] = i < rows ? x.scales[index[i]] : 0;
}

void quantize_tile(const float* x, const Activations& tiles, int64_t row) {
    const int64_t in = tiles.in, padded = round_up(in, STEP);
    __m512i bits = _mm512_setzero_si512();
    for (int64_t k = 0; k < in; ++k)
        bits = _mm512_max_epu32(bits, _mm512_and_si512(_mm512_loadu_si512(x + k * TILE), _mm512_set1_epi32(0x7fffffff)));
    alignas(64) float amax[TILE], inverses[TILE];
    _mm512_store_si512(amax, bits);
    for (int64_t i = 0; i < TILE; ++i) tiles.scales[row + i] = activation_scale(amax[i], tiles.planes, inverses[i]);
    const __m512 inverse = _mm512_load_ps(inverses);
    int8_t* to = tile_at(tiles, row);
    for (int64_t k = 0; k < padded; k += STEP, to += tiles.planes * TILE_BYTES)
        for (int64_t quadruple = 0; quadruple < STEP / 4; ++quadruple) {
            __m512i packed[3] = {};
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const int64_t at = k + 4 * quadruple + j;
                __m512i q = at < in ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + at * TILE), inverse))
                                    : _mm512_setzero_si512();
                for (int plane = tiles.planes - 1; plane >= 0; --plane) {
                    const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(q, 24), 24);
                    const __m512i byte = _mm512_and_si512(q, _mm512_set1_epi32(0xff));
                    packed[plane] = _mm512_or_si512(packed[plane], _mm512_slli_epi32(byte, 8 * j));
                    q = _mm512_srai_epi32(_mm512_sub_epi32(q, low), 8);
                }
            }
            for (int plane = 0; plane < tiles.planes; ++plane)
                _mm512_store_si512(to + plane * TILE_BYTES + quadruple * 64, packed[plane]);
        }
}

namespace {

// The sums of BLOCKS * 16 rows of weights and 16 tokens: [BLOCKS][PLANES][16][16].
template <int PLANES, int BLOCKS>
struct Sums {
    static constexpr int64_t ROWS = BLOCKS * TILE;
    static constexpr int64_t SIZE = BLOCKS * PLANES * TILE * TILE;
};

template <int PLANES, int BLOCKS>
inline void zero() {
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (PLANES == 3 || BLOCKS == 2) tile_zero<2>();
    if constexpr (BLOCKS == 2) tile_zero<3>();
}

template <int PLANES, int BLOCKS>
inline void restore(const int32_t* sums) {
    tile_load<0>(sums, 64);
    tile_load<1>(sums + 256, 64);
    if constexpr (PLANES == 3 || BLOCKS == 2) tile_load<2>(sums + 512, 64);
    if constexpr (BLOCKS == 2) tile_load<3>(sums + 768, 64);
}

template <int PLANES, int BLOCKS>
inline void save(int32_t* sums) {
    tile_store<0>(sums, 64);
    tile_store<1>(sums + 256, 64);
    if constexpr (PLANES == 3 || BLOCKS == 2) tile_store<2>(sums + 512, 64);
    if constexpr (BLOCKS == 2) tile_store<3>(sums + 768, 64);
}

// weight: 16 * BLOCKS rows, `stride` apart, of 64 values; x: the planes' tiles.
template <int PLANES, int BLOCKS>
inline void multiply_step(const int8_t* weight, int64_t stride, const int8_t* x) {
    static_assert((PLANES == 2 && BLOCKS <= 2) || (PLANES == 3 && BLOCKS == 1), "there are eight tiles");
    tile_load<4>(weight, stride);
    tile_load<6>(x, 64);
    tile_multiply_int8<0, 4, 6>();
    tile_load<7>(x + TILE_BYTES, 64);
    tile_multiply_int8<1, 4, 7>();
    if constexpr (PLANES == 3) {
        tile_load<5>(x + 2 * TILE_BYTES, 64);
        tile_multiply_int8<2, 4, 5>();
    } else if constexpr (BLOCKS == 2) {
        tile_load<5>(weight + TILE * stride, stride);
        tile_multiply_int8<2, 5, 6>();
        tile_multiply_int8<3, 5, 7>();
    }
}

// `rows` rows of `size` values, with zeros to 16 * BLOCKS rows of 64: nothing is read behind the matrix.
template <int BLOCKS>
inline void copy_part(const int8_t* weight, int64_t stride, int64_t rows, int64_t size, int8_t* part) {
    std::memset(part, 0, BLOCKS * TILE * STEP);
    for (int64_t r = 0; r < rows; ++r) std::memcpy(part + r * STEP, weight + r * stride, size);
}

template <int BLOCKS>
inline void prefetch(const int8_t* weight, int64_t stride) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < BLOCKS * TILE; ++r) _mm_prefetch((const char*)(weight + r * stride), _MM_HINT_T0);
}

// Adds from <= k < to of `in` for the rows from `n` on and one tile of tokens to the tile registers. next: the rows after
// them, which are asked for when these end; null for nothing.
template <int PLANES, int BLOCKS>
inline void multiply_span(const Matrix& w, int64_t n, int64_t rows, const int8_t* x, bool fetch, const int8_t* next) {
    const int8_t* weight = w.values + n * w.in;
    const int64_t whole = rows < BLOCKS * TILE ? 0 : w.in / STEP * STEP;
    int64_t k = 0;
    for (; k < whole; k += STEP, x += PLANES * TILE_BYTES) {
        if (fetch) {
            if (k + AHEAD < w.in)
                prefetch<BLOCKS>(weight + k + AHEAD, w.in);
            else if (next != nullptr)
                prefetch<BLOCKS>(next + k + AHEAD - w.in, w.in);
        }
        multiply_step<PLANES, BLOCKS>(weight + k, w.in, x);
    }
    for (; k < w.in; k += STEP, x += PLANES * TILE_BYTES) {
        alignas(64) int8_t part[BLOCKS * TILE * STEP];
        copy_part<BLOCKS>(weight + k, w.in, rows, w.in - k < STEP ? w.in - k : STEP, part);
        multiply_step<PLANES, BLOCKS>(part, STEP, x);
    }
}

// from <= k < to of `rows` rows as consecutive tiles: rows that are a power of two apart displace each other in the
// cache, and are not fetched in advance.
template <int BLOCKS>
void pack_weights(const int8_t* weight, int64_t stride, int64_t rows, int64_t from, int64_t to, int8_t* packed) {
    for (int64_t k = from; k < to; k += STEP, packed += BLOCKS * TILE_BYTES) {
        if (rows < BLOCKS * TILE || to - k < STEP) {
            copy_part<BLOCKS>(weight + k, stride, rows, to - k < STEP ? to - k : STEP, packed);
            continue;
        }
#pragma GCC unroll 8
        for (int64_t r = 0; r < BLOCKS * TILE; ++r)
            _mm512_store_si512(packed + r * STEP, _mm512_loadu_si512(weight + r * stride + k));
    }
}

struct Output {
    float* y;
    int64_t stride;
    bool transposed;
};

// sums of `rows` rows of weights from `n` on, times 16 tokens of which `tokens` are wanted.
template <int PLANES, int BLOCKS>
void write(const Matrix& w, int64_t begin, int64_t n, int64_t rows, const int32_t* sums, const float* token_scales,
           int64_t tile, int64_t tokens, const Output& out) {
    const __m512 scales = _mm512_loadu_ps(token_scales);
    for (int block = 0; block < BLOCKS; ++block, n += TILE, rows -= TILE) {
        const int64_t here = rows < TILE ? rows : TILE;
        if (here <= 0) return;
        __m512i y[TILE];
        for (int64_t r = 0; r < TILE; ++r) {
            __m512d low, high;  // the sums of both halves of the tokens
            for (int p = 0; p < PLANES; ++p) {
                const auto* part = (const __m256i*)(sums + (block * PLANES + p) * 256 + r * TILE);
                const __m512d first = _mm512_cvtepi32_pd(_mm256_load_si256(part));
                const __m512d second = _mm512_cvtepi32_pd(_mm256_load_si256(part + 1));
                low = p == 0 ? first : _mm512_fmadd_pd(low, _mm512_set1_pd(256), first);
                high = p == 0 ? second : _mm512_fmadd_pd(high, _mm512_set1_pd(256), second);
            }
            const __m512 sum = _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
            const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(r < here ? w.scales[n + r] : 0));
            y[r] = _mm512_castps_si512(_mm512_mul_ps(sum, scale));
        }
        if (out.transposed) {
            float* to = out.y + tile * out.stride + (n - begin) * TILE;
            for (int64_t r = 0; r < here; ++r) _mm512_storeu_si512(to + r * TILE, y[r]);
        } else {
            transpose(y);
            const __mmask16 mask = __mmask16((1u << here) - 1);
            float* to = out.y + tile * TILE * out.stride + n - begin;
            for (int64_t t = 0; t < tokens; ++t) _mm512_mask_storeu_epi32(to + t * out.stride, mask, y[t]);
        }
    }
}

// For a few tokens, which wait for the weights: each row is read once, from its start to its end.
template <int PLANES, int BLOCKS>
void multiply_few(const Matrix& w, int64_t begin, int64_t end, const Activations& tiles, int64_t row, int64_t tokens,
                  const Output& out) {
    using S = Sums<PLANES, BLOCKS>;
    alignas(64) int32_t sums[S::SIZE];
    for (int64_t n = begin; n < end; n += S::ROWS) {
        const int64_t rows = end - n < S::ROWS ? end - n : S::ROWS;
        const int8_t* next = n + S::ROWS < end ? w.values + (n + S::ROWS) * w.in : nullptr;
        for (int64_t token = 0; token < tokens; token += TILE) {
            zero<PLANES, BLOCKS>();
            multiply_span<PLANES, BLOCKS>(w, n, rows, tile_at(tiles, row + token), token == 0, next);
            save<PLANES, BLOCKS>(sums);
            const int64_t wanted = tokens - token < TILE ? tokens - token : TILE;
            write<PLANES, BLOCKS>(w, begin, n, rows, sums, tiles.scales + row + token, token / TILE, wanted, out);
        }
    }
}

// For many tokens, which wait for the tiles: blocks of both matrices that stay in the caches.
template <int PLANES, int BLOCKS>
void multiply_many(const Matrix& w, int64_t begin, int64_t end, const Activations& tiles, int64_t row, int64_t tokens,
                   const Output& out) {
    using S = Sums<PLANES, BLOCKS>;
    const int64_t groups = (tokens + TILE - 1) / TILE, blocks = (end - begin + S::ROWS - 1) / S::ROWS;
    constexpr int64_t PANEL = S::ROWS * BLOCK_IN;  // bytes of packed weights
    const int64_t sums_bytes = w.in > BLOCK_IN ? groups * blocks * S::SIZE * 4 : 0;
    thread_local Scratch memory;
    auto* sums = (int32_t*)memory.bytes(sums_bytes + blocks * PANEL);
    int8_t* packed = (int8_t*)sums + sums_bytes;
    for (int64_t from = 0; from < w.in; from += BLOCK_IN) {
        const int64_t to = from + BLOCK_IN < w.in ? from + BLOCK_IN : w.in;
        const auto rows_of = [&](int64_t n) { return end - n < S::ROWS ? end - n : S::ROWS; };
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t n = begin + block * S::ROWS;
            pack_weights<BLOCKS>(w.values + n * w.in, w.in, rows_of(n), from, to, packed + block * PANEL);
        }
        for (int64_t group = 0; group < groups; ++group)
            for (int64_t block = 0; block < blocks; ++block) {
                int32_t* at = sums + (group * blocks + block) * S::SIZE;
                if (from == 0)
                    zero<PLANES, BLOCKS>();
                else
                    restore<PLANES, BLOCKS>(at);
                const int8_t* weight = packed + block * PANEL;
                const int8_t* x = tile_at(tiles, row + group * TILE) + from * PLANES * TILE;
                for (int64_t k = from; k < to; k += STEP, weight += BLOCKS * TILE_BYTES, x += PLANES * TILE_BYTES)
                    multiply_step<PLANES, BLOCKS>(weight, STEP, x);
                if (to < w.in) {
                    save<PLANES, BLOCKS>(at);
                    continue;
                }
                alignas(64) int32_t done[S::SIZE];  // stays in the first-level cache
                save<PLANES, BLOCKS>(done);
                const int64_t n = begin + block * S::ROWS, left = tokens - group * TILE;
                write<PLANES, BLOCKS>(w, begin, n, rows_of(n), done, tiles.scales + row + group * TILE, group,
                                      left < TILE ? left : TILE, out);
            }
    }
}

template <int PLANES, int BLOCKS>
void multiply(const Matrix& w, int64_t begin, int64_t end, const Activations& tiles, int64_t row, int64_t tokens,
              const Output& out) {
    load_tiles();
    const auto product = tokens <= FEW * TILE ? multiply_few<PLANES, BLOCKS> : multiply_many<PLANES, BLOCKS>;
    product(w, begin, end, tiles, row, tokens, out);
    release_tiles();
}

}  // namespace

void multiply_tiles(const Matrix& w, int64_t begin, int64_t end, const Activations& tiles, int64_t row, int64_t tokens,
                    float* y, int64_t stride, bool transposed) {
    const Output out{y, stride, transposed};
    if (tiles.planes == 2)
        multiply<2, 2>(w, begin, end, tiles, row, tokens, out);
    else
        multiply<3, 1>(w, begin, end, tiles, row, tokens, out);
}

}  // namespace mixtral::int8

MIXTRAL_END
