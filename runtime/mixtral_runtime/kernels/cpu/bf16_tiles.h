// Tiles of bfloat16: sums [16 rows][columns] of float32, from left factors [16][32] and right ones [16 pairs][columns].
//
// A column of a sum depends on that column of the right factor alone, and its products are added in one order, so a
// result does not depend on how many columns there are.
#pragma once

#include "amx.h"

namespace mixtral {

// Tiles 4 and 5 for left factors, the others with `columns` columns of 4 bytes. Each thread does it before each use.
inline void load_bf16_tiles(int64_t columns) {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = tile == 4 || tile == 5 ? 64 : uint16_t(4 * columns);
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

}  // namespace mixtral
