// mixtral_cpu::int8_linear

#include <torch/csrc/stable/library.h>

#include <numeric>
#include <vector>

#include "floats.h"
#include "int8.h"
#include "int8_work.h"
#include "parallel.h"

namespace mixtral::int8 {
namespace {

using torch::stable::Tensor;

// x [tokens, in], weight int8 [out, in], scales float32 [out], all contiguous -> [tokens, out] in x's dtype.
Tensor linear(Tensor x, Tensor weight, Tensor scales) {
    const int64_t tokens = x.size(0);
    const ScalarType dtype = x.scalar_type();
    const Matrix matrix = matrix_of(weight, scales, 0, 1);
    Tensor result = torch::stable::new_empty(x, {tokens, matrix.out});
    if (tokens == 0) return result;

    const bool tiles = path() == Path::amx && tokens >= TILE_TOKENS;
    thread_local Scratch memory[2];
    const Activations rows = activations(memory[0], tokens, matrix.in, dtype);
    const Activations packed = activations(memory[1], tiles ? round_up(tokens, TILE) : 0, matrix.in, dtype);
    std::vector<int32_t> index(tokens);
    std::iota(index.begin(), index.end(), 0);
    for_each((tokens + TILE - 1) / TILE, [&](int64_t group) {
        const int64_t start = group * TILE, count = tokens - start < TILE ? tokens - start : TILE;
        for (int64_t row = start; row < start + count; ++row) quantize_token(x.const_data_ptr(), dtype, row, rows, row);
        if (tiles) pack_tile(rows, index.data() + start, count, packed, start);
    });

    const int64_t block = rows_at_once(matrix.out, matrix.in, tokens);
    void* to = result.mutable_data_ptr();
    for_each((matrix.out + block - 1) / block, [&](int64_t task) {
        const int64_t begin = task * block, end = begin + block < matrix.out ? begin + block : matrix.out;
        thread_local Scratch part;
        auto* y = (float*)part.bytes(tokens * block * 4);
        if (tiles)
            multiply_tiles(matrix, begin, end, packed, 0, tokens, y, block, false);
        else
            multiply_rows()(matrix, begin, end, rows, index.data(), tokens, y, block);
        for (int64_t t = 0; t < tokens; ++t) store_floats(y + t * block, end - begin, to, dtype, t * matrix.out + begin);
    });
    return result;
}

}  // namespace
}  // namespace mixtral::int8

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def("int8_linear(Tensor x, Tensor weight, Tensor scales) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) { m.impl("int8_linear", TORCH_BOX(&mixtral::int8::linear)); }
