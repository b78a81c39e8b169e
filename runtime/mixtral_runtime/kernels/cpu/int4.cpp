// mixtral_cpu::int4_linear and mixtral_cpu::int4_experts

#include "int4.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <optional>

#include "path.h"
#include "products.h"

namespace mixtral::int4 {
namespace {

using torch::stable::Tensor;

// From this many tokens on, tiles that are not full are faster than rows one by one.
constexpr int64_t TILE_TOKENS = 4;

// The Format of products.h. float32 takes two passes, the second over what the 16 bits of the first leave.
struct Int4 {
    struct Tokens {
        int4::Tokens parts[2];
        int count;
    };

    static constexpr int64_t ROWS = int4::ROWS, BLOCK = int4::BLOCK;
    int64_t out, in;
    Matrix matrix;
    const void* prequant_scale;  // [in] in `dtype`, null for none
    ScalarType dtype;            // of the activations

    static int64_t tile_tokens() { return path() == Path::amx ? TILE_TOKENS : INT64_MAX; }

    static Tokens tokens(Scratch& memory, int64_t rows, int64_t in, ScalarType dtype) {
        Tokens all{{}, dtype == ScalarType::Float ? 2 : 1};
        const int64_t groups = in / GROUP, padded = (rows + TILE - 1) / TILE * TILE;
        const int64_t bytes = padded * (2 * in + groups * 8);
        auto* at = static_cast<int8_t*>(memory.bytes(all.count * bytes));
        for (int i = 0; i < all.count; ++i, at += bytes) {
            auto* scales = reinterpret_cast<float*>(at + padded * 2 * in);
            all.parts[i] = {at, scales, reinterpret_cast<int32_t*>(scales + padded * groups), in, false};
        }
        return all;
    }

    static Tokens part(Tokens all, int64_t start, int64_t count) {
        for (auto& one : all.parts) {
            one.planes += start * 2 * one.k;
            one.scales += start * (one.k / GROUP);
            one.sums += start * (one.k / GROUP);
            one.tiled = count >= tile_tokens();
        }
        return all;
    }

    void prepare(float* x, int64_t row, const Tokens& to) const {
        if (prequant_scale) scale(x);
        thread_local Scratch memory;
        float* rest = to.count > 1 ? static_cast<float*>(memory.bytes(in * sizeof(float))) : nullptr;
        int4::prepare(x, row, to.parts[0], rest);
        if (rest) int4::prepare(rest, row, to.parts[1], nullptr);
    }

    // A scale for what is not there: left as it was, it could be a number that slows the processor down.
    static void clear(int64_t row, const Tokens& tokens) {
        for (int i = 0; i < tokens.count; ++i) {
            const auto& one = tokens.parts[i];
            float* scales = one.scales + row / TILE * TILE * (one.k / GROUP) + row % TILE;
            for (int64_t group = 0; group < one.k / GROUP; ++group) scales[group * TILE] = 0;
        }
    }

    void multiply(int64_t row, int64_t rows, const Tokens& x, int64_t first, int64_t count, float* to) const {
        const auto multiply = x.parts[0].tiled             ? multiply_amx
                              : path() == Path::avx2 ? multiply_avx2
                                                     : multiply_avx512;
        multiply(matrix, row / 2, rows / 2, x.parts[0], first, count, to);
        if (x.count == 1) return;
        float rest[BLOCK * ROWS];
        multiply(matrix, row / 2, rows / 2, x.parts[1], first, count, rest);
        for (int64_t t = 0; t < count; ++t)
            for (int64_t i = 0; i < rows; ++i) to[t * ROWS + i] += rest[t * ROWS + i];
    }

    // x times the scale, rounded to the activations' dtype.
    void scale(float* x) const {
        thread_local Scratch memory;
        auto* factors = static_cast<float*>(memory.bytes(in * 2 * sizeof(float)));
        load_floats(prequant_scale, dtype, 0, in, factors);
        for (int64_t i = 0; i < in; ++i) factors[i] *= x[i];
        store_floats(factors, in, factors + in, dtype, 0);
        load_floats(factors + in, dtype, 0, in, x);
    }
};

// The matrices of weight int8 [count, out / 2, in]; scales, offsets [count, out, in / 128]; prequant_scale [count, in].
std::vector<Int4> matrices(const Tensor& weight, const Tensor& scales, const std::optional<Tensor>& offsets,
                           const std::optional<Tensor>& prequant_scale, int64_t count, ScalarType dtype) {
    const int64_t in = weight.size(-1), out = 2 * (weight.numel() / in / count), factors = out * (in / GROUP);
    const int64_t size = scales.scalar_type() == ScalarType::Float ? 4 : 2;
    std::vector<Int4> made;
    for (int64_t i = 0; i < count; ++i) {
        Matrix matrix{static_cast<const uint8_t*>(weight.const_data_ptr()) + i * out / 2 * in,
                      static_cast<const char*>(scales.const_data_ptr()) + i * factors * size,
                      scales.scalar_type(),
                      offsets ? static_cast<const int8_t*>(offsets->const_data_ptr()) + i * factors : nullptr,
                      out,
                      in};
        const int64_t bytes = in * (dtype == ScalarType::Float ? 4 : 2);
        const void* factor =
            prequant_scale ? static_cast<const char*>(prequant_scale->const_data_ptr()) + i * bytes : nullptr;
        made.push_back({out, in, matrix, factor, dtype});
    }
    return made;
}

// x [tokens, in]. All contiguous; prequant_scale in x's dtype.
Tensor linear(Tensor x, Tensor weight, Tensor scales, std::optional<Tensor> offsets,
              std::optional<Tensor> prequant_scale) {
    return mixtral::linear(x, matrices(weight, scales, offsets, prequant_scale, 1, x.scalar_type())[0]);
}

Tensor experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor fc_scales, std::optional<Tensor> fc_offsets,
               std::optional<Tensor> fc_prequant_scale, Tensor proj, Tensor proj_scales,
               std::optional<Tensor> proj_offsets, std::optional<Tensor> proj_prequant_scale) {
    const int64_t count = fc.size(0);
    return mixtral::experts(x, chosen, weights,
                            matrices(fc, fc_scales, fc_offsets, fc_prequant_scale, count, x.scalar_type()),
                            matrices(proj, proj_scales, proj_offsets, proj_prequant_scale, count, x.scalar_type()));
}

}  // namespace
}  // namespace mixtral::int4

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def("int4_linear(Tensor x, Tensor weight, Tensor scales, Tensor? offsets, Tensor? prequant_scale) -> Tensor");
    m.def(
        "int4_experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor fc_scales, Tensor? fc_offsets, "
        "Tensor? fc_prequant_scale, Tensor proj, Tensor proj_scales, Tensor? proj_offsets, "
        "Tensor? proj_prequant_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) {
    m.impl("int4_linear", TORCH_BOX(&mixtral::int4::linear));
    m.impl("int4_experts", TORCH_BOX(&mixtral::int4::experts));
}
