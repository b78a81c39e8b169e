// The 16-bit number formats of activations and weights, as bits.
#pragma once

#include <cstdint>

namespace mixtral {

struct BF16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

}  // namespace mixtral
