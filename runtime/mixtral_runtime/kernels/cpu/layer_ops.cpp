// The small steps of a layer: residual sum and RMSNorm, rotary embedding with the write into the KV cache, routing.
// Each row is computed by itself, in one order of sums.

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"  // in gcc 12's own intrinsics

#include <immintrin.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "bits.h"
#include "numbers.h"
#include "parallel.h"
#include "path.h"

namespace mixtral {
namespace {

constexpr int64_t SERIAL = 1 << 15;  // elements that are not worth a second thread

struct Rotation {
    const void* qkv;  // [tokens, heads + 2 * kv_heads, head_size]
    void* queries;    // [tokens, heads, head_size]
    char *keys, *values;  // of one layer: [slots, kv_heads, head_size]
    bool fp8;
    float scale;
    const float *cos, *sin;  // [positions, head_size / 2]
    const int64_t *positions, *slots;  // [tokens]
    int64_t heads, kv_heads, head_size;
};

struct Router {
    const void* x;        // [tokens, hidden]
    const float* weight;  // [experts, hidden]
    int64_t* chosen;      // [tokens, top_k]
    float* weights;       // [tokens, top_k]
    int64_t hidden, experts, top_k;
};

// NaN counts as the largest, as in PyTorch's sort.
bool better(float a, float b) { return std::isnan(a) ? !std::isnan(b) : a > b; }

void choose(const float* logits, const Router& r, int64_t token) {
    int64_t* chosen = r.chosen + token * r.top_k;
    float* weights = r.weights + token * r.top_k;
    for (int64_t k = 0; k < r.top_k; ++k) {
        int64_t best = -1;
        for (int64_t expert = 0; expert < r.experts; ++expert)
            if ((best < 0 || better(logits[expert], logits[best])) &&
                std::find(chosen, chosen + k, expert) == chosen + k)
                best = expert;
        chosen[k] = best;
    }
    float total = 0;
    for (int64_t k = 0; k < r.top_k; ++k) total += weights[k] = std::exp(logits[chosen[k]] - logits[chosen[0]]);
    for (int64_t k = 0; k < r.top_k; ++k) weights[k] /= total;
}

}  // namespace

#define KERNEL "layer_ops.inc"
#include "vector_paths.inc"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls work(first, end) for parts of the rows.
template <class Work>
void for_rows(int64_t rows, int64_t elements_of_row, Work work) {
    const int64_t team = rows * elements_of_row < SERIAL ? 1 : std::min<int64_t>(threads(), rows);
    if (team <= 1) return work(0, rows);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t part = 0; part < team; ++part) work(rows * part / team, rows * (part + 1) / team);
}

void norm_into(const Tensor& x, const void* y, const Tensor& weight, double epsilon, void* sum_of, Tensor& normed) {
    const int64_t size = x.size(1);
    const void* from = x.data_ptr();
    void* to = normed.data_ptr();
    const auto* factors = static_cast<const float*>(weight.data_ptr());
    const auto norm_rows = FOR_PATH_AND_TYPE(norm_rows, x.scalar_type());
    for_rows(x.size(0), size, [&](int64_t first, int64_t end) {
        norm_rows(from, y, factors, float(epsilon), size, sum_of, to, first, end);
    });
}

// x [tokens, hidden], weight [hidden] float32 -> norm(x).
Tensor rms_norm(Tensor x, Tensor weight, double epsilon) {
    STD_TORCH_CHECK(x.is_contiguous());
    Tensor normed = torch::stable::empty_like(x);
    norm_into(x, nullptr, weight, epsilon, nullptr, normed);
    return normed;
}

// -> x + y rounded to their dtype, and its norm.
std::tuple<Tensor, Tensor> add_rms_norm(Tensor x, Tensor y, Tensor weight, double epsilon) {
    STD_TORCH_CHECK(x.is_contiguous() && y.is_contiguous() && y.scalar_type() == x.scalar_type());
    Tensor total = torch::stable::empty_like(x), normed = torch::stable::empty_like(x);
    norm_into(x, y.data_ptr(), weight, epsilon, total.data_ptr(), normed);
    return {total, normed};
}

// qkv: [tokens, (heads + 2 * kv_heads) * head_size]; cos, sin: [positions, head_size / 2] float32; positions, slots:
// [tokens] int64; storage and scales as in paged_attention -> queries [tokens, heads * head_size].
Tensor rotate_and_cache(Tensor qkv, Tensor cos, Tensor sin, Tensor positions, Tensor slots, Tensor storage,
                        std::optional<Tensor> scales, int64_t layer) {
    STD_TORCH_CHECK(qkv.is_contiguous() && storage.is_contiguous());
    Rotation r{};
    r.kv_heads = storage.size(4);
    r.head_size = storage.size(5);
    r.heads = qkv.size(1) / r.head_size - 2 * r.kv_heads;
    const int64_t tokens = qkv.size(0);
    const auto dtype = qkv.scalar_type();
    Tensor queries = torch::stable::new_empty(qkv, {tokens, r.heads * r.head_size});
    r.qkv = qkv.data_ptr();
    r.queries = queries.data_ptr();
    r.fp8 = scales.has_value();
    r.scale = r.fp8 ? static_cast<const float*>(scales->data_ptr())[layer] : 1.0f;
    const int64_t item = r.fp8 ? 1 : dtype == ScalarType::Float ? 4 : 2;
    const int64_t half = storage.size(2) * storage.size(3) * r.kv_heads * r.head_size * item;
    r.keys = static_cast<char*>(storage.data_ptr()) + 2 * layer * half;
    r.values = r.keys + half;
    r.cos = static_cast<const float*>(cos.data_ptr());
    r.sin = static_cast<const float*>(sin.data_ptr());
    r.positions = static_cast<const int64_t*>(positions.data_ptr());
    r.slots = static_cast<const int64_t*>(slots.data_ptr());
    const auto rotate_rows = FOR_PATH_AND_TYPE(rotate_rows, dtype);
    for_rows(tokens, qkv.size(1), [&](int64_t first, int64_t end) { rotate_rows(r, first, end); });
    return queries;
}

// x: [tokens, hidden], weight: [experts, hidden] float32 -> experts [tokens, top_k] int64, weights float32.
std::tuple<Tensor, Tensor> route(Tensor x, Tensor weight, int64_t top_k) {
    STD_TORCH_CHECK(x.is_contiguous() && weight.is_contiguous() && weight.scalar_type() == ScalarType::Float);
    const int64_t tokens = x.size(0);
    Tensor chosen = torch::stable::new_empty(x, {tokens, top_k}, ScalarType::Long);
    Tensor weights = torch::stable::new_empty(x, {tokens, top_k}, ScalarType::Float);
    const Router r{x.data_ptr(), static_cast<const float*>(weight.data_ptr()), static_cast<int64_t*>(chosen.data_ptr()),
                    static_cast<float*>(weights.data_ptr()), x.size(1), weight.size(0), top_k};
    const auto route_rows = FOR_PATH_AND_TYPE(route_rows, x.scalar_type());
    for_rows(tokens, r.hidden * r.experts, [&](int64_t first, int64_t end) { route_rows(r, first, end); });
    return {chosen, weights};
}

}  // namespace
}  // namespace mixtral

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
    m.def("add_rms_norm(Tensor x, Tensor y, Tensor weight, float epsilon) -> (Tensor, Tensor)");
    m.def(
        "rotate_and_cache(Tensor qkv, Tensor cos, Tensor sin, Tensor positions, Tensor slots, Tensor(a!) storage, "
        "Tensor? scales, int layer) -> Tensor");
    m.def("route(Tensor x, Tensor weight, int top_k) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) {
    m.impl("rms_norm", TORCH_BOX(&mixtral::rms_norm));
    m.impl("add_rms_norm", TORCH_BOX(&mixtral::add_rms_norm));
    m.impl("rotate_and_cache", TORCH_BOX(&mixtral::rotate_and_cache));
    m.impl("route", TORCH_BOX(&mixtral::route));
}
