// mixtral_cpu::fp8_linear and mixtral_cpu::fp8_experts

#include "fp8.h"

#include <torch/csrc/stable/library.h>

#include "path.h"
#include "products.h"

namespace mixtral::fp8 {
namespace {

using torch::stable::Tensor;

// AVX512-VNNI alone does not say that there is BF16.
Order order() {
    static const bool bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
                             __builtin_cpu_supports("gfni");
    return path() == Path::amx ? Order::tiled : path() == Path::avx512 && bf16 ? Order::shuffled : Order::plain;
}

// The Format of products.h.
struct Fp8 {
    using Tokens = fp8::Tokens;
    static constexpr int64_t ROWS = fp8::ROWS, BLOCK = fp8::BLOCK;
    int64_t out, in;
    Matrix matrix;

    static int64_t tile_tokens() { return order() == Order::tiled ? 1 : INT64_MAX; }

    static Tokens tokens(Scratch& memory, int64_t rows, int64_t in, ScalarType) {
        const int64_t padded = (in + STEP - 1) / STEP * STEP;
        return {static_cast<uint16_t*>(memory.bytes(rows * padded * 2)), padded, TILE, order()};
    }

    static Tokens part(Tokens all, int64_t start, int64_t count) {
        all.values += start * all.k;
        all.columns = std::min(TILE, count);
        return all;
    }

    void prepare(const float* x, int64_t row, const Tokens& to) const {
        fp8::prepare(x, in, matrix.activation_scale, row, to);
    }

    static void clear(int64_t, const Tokens&) {}  // columns do not mix

    void multiply(int64_t row, int64_t rows, const Tokens& x, int64_t first, int64_t count, float* to) const {
        const auto multiply = x.order == Order::tiled      ? multiply_amx
                              : x.order == Order::shuffled ? multiply_avx512
                                                           : multiply_avx2;
        multiply(matrix, row, rows, x, first, count, to);
    }
};

// The matrices of weight E4M3 [count, out, in], with float32 scales [count] and activation_scale [1].
std::vector<Fp8> matrices(const Tensor& weight, const Tensor& scales, const Tensor& activation_scale, int64_t count) {
    const int64_t in = weight.size(-1), out = weight.numel() / in / count;
    const auto* of_weights = static_cast<const float*>(scales.const_data_ptr());
    const float of_tokens = *static_cast<const float*>(activation_scale.const_data_ptr());
    std::vector<Fp8> made;
    for (int64_t i = 0; i < count; ++i)
        made.push_back({out, in,
                        {static_cast<const uint8_t*>(weight.const_data_ptr()) + i * out * in, out, in,
                         of_weights[i] * of_tokens, of_tokens}});
    return made;
}

// x [tokens, in]. All contiguous.
Tensor linear(Tensor x, Tensor weight, Tensor scale, Tensor activation_scale) {
    return mixtral::linear(x, matrices(weight, scale, activation_scale, 1)[0]);
}

Tensor experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor fc_scales, Tensor fc_activation_scale,
               Tensor proj, Tensor proj_scales, Tensor proj_activation_scale) {
    return mixtral::experts(x, chosen, weights, matrices(fc, fc_scales, fc_activation_scale, fc.size(0)),
                            matrices(proj, proj_scales, proj_activation_scale, fc.size(0)));
}

}  // namespace
}  // namespace mixtral::fp8

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def("fp8_linear(Tensor x, Tensor weight, Tensor scale, Tensor activation_scale) -> Tensor");
    m.def(
        "fp8_experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor fc_scales, Tensor fc_activation_scale, "
        "Tensor proj, Tensor proj_scales, Tensor proj_activation_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) {
    m.impl("fp8_linear", TORCH_BOX(&mixtral::fp8::linear));
    m.impl("fp8_experts", TORCH_BOX(&mixtral::fp8::experts));
}
