// AMX tiles, in assembler: gcc 12's intrinsics do not tell the compiler which memory they read, so that it drops stores.
#pragma once

#include <cstdint>

namespace mixtral {

// All eight tiles with 16 rows of 64 bytes. Intel's manual: palette, start row, 14 zeros, bytes of a row [16] u16, rows [16] u8.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// PyTorch's libraries change or release the configuration, so each thread loads it before each use.
inline void load_tiles() {
    static const TileConfig config;
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int TILE>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

// 16 rows, `stride` bytes apart.
template <int TILE>
inline void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}

// SUM [16][16] int32 += LEFT [16][64] int8 times RIGHT [16 quadruples][16][4] int8.
template <int SUM, int LEFT, int RIGHT>
inline void tile_multiply_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

// SUM [16][16] float32 += LEFT [16][32] bfloat16 times RIGHT [16 pairs][16][2] bfloat16.
template <int SUM, int LEFT, int RIGHT>
inline void tile_multiply_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

}  // namespace mixtral
