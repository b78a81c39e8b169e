// AMX tiles. PyTorch's libraries release or change the configuration, so every thread loads it in every parallel region.
#pragma once

#include <cstdint>

namespace mixtral {

// All eight tiles with 16 rows of 64 bytes. Intel's manual: palette, start row, 14 zeros, bytes of a row [16] u16, rows [16] u8.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// gcc 12's intrinsic says that it reads 8 bytes, so that stores to the other 56 are dropped; hence assembler.
inline void load_tiles() {
    static const TileConfig config;
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

}  // namespace mixtral
