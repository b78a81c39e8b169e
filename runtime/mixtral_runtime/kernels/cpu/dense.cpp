// Products of 16-bit or float32 weights, as they are: one matrix, or all experts of a layer.
//
// A token's sums run over the elements in one order, whatever the number of tokens and the threads' shares. bfloat16
// takes AMX tiles where there are any, for one token as for many: reading the weights takes longer than multiplying.

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"  // in gcc 12's own intrinsics

#include <immintrin.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "arena.h"
#include "bf16_tiles.h"
#include "numbers.h"
#include "parallel.h"
#include "path.h"
#include "routing.h"

namespace mixtral {
namespace {

constexpr int64_t STRIP = 32;             // rows of a weight that are multiplied at once
constexpr int64_t TASK_BYTES = 128 << 10;  // of the weights of one task at least
constexpr int64_t PACKED_BYTES = 1 << 20;  // of activations that are multiplied with one reading of the weights
constexpr int64_t SERIAL = 1 << 16;        // multiplications that are not worth a second thread

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Rows of a weight that are one task.
int64_t rows_at_once(int64_t size, int64_t item) {
    return round_up(std::max<int64_t>(TASK_BYTES / (size * item), 1), STRIP);
}

// Some rows of one expert's weight, times the packed activations of some of its tokens.
struct Block {
    int64_t expert, begin, end;        // rows
    int64_t first, tokens;             // rows of what is computed for all pairs
    const float* packed;
};

// Tokens of one product, so that their packed activations stay in the cache.
int64_t tokens_at_once(int64_t size) { return std::max<int64_t>(PACKED_BYTES / (2 * size) / STRIP * STRIP, STRIP); }

struct Experts {
    const void* x;              // [tokens, hidden]
    const void *fc, *proj;      // [experts, 2 * intermediate, hidden], [experts, hidden, intermediate]
    const float* weights;       // [tokens, top_k]
    void* result;               // [tokens, hidden]
    int64_t tokens, hidden, intermediate, top_k;
};

}  // namespace

#define KERNEL "dense.inc"
#include "vector_paths.inc"

MIXTRAL_BEGIN_AMX
namespace amx {
namespace {
using namespace avx512;
#include "transpose.inc"
#include "product_tiles.inc"

void linear_tiles(const void* x, const void* weight, void* y, int64_t tokens, int64_t out, int64_t size) {
    linear<BF16, TileProduct>(x, weight, y, tokens, out, size);
}

void experts_tiles(const Experts& e, const Routing& routing) { experts<BF16, TileProduct>(e, routing); }
}  // namespace
}  // namespace amx
MIXTRAL_END

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool takes_tiles(ScalarType dtype) { return dtype == ScalarType::BFloat16 && path() == Path::amx; }

// x [tokens, in], weight [out, in] of one dtype, contiguous -> [tokens, out].
Tensor dense_linear(Tensor x, Tensor weight) {
    STD_TORCH_CHECK(x.is_contiguous() && weight.is_contiguous() && x.scalar_type() == weight.scalar_type());
    const int64_t tokens = x.size(0), out = weight.size(0), size = weight.size(1);
    const auto dtype = x.scalar_type();
    Tensor y = torch::stable::new_empty(x, {tokens, out});
    const auto multiply = takes_tiles(dtype) ? amx::linear_tiles : FOR_PATH_AND_TYPE(linear_vectors, dtype);
    if (tokens > 0) multiply(x.data_ptr(), weight.data_ptr(), y.data_ptr(), tokens, out, size);
    return y;
}

// x [tokens, hidden]; chosen int64 and weights float32 [tokens, top_k]; fc [experts, 2 * intermediate, hidden], up
// first; proj [experts, hidden, intermediate]; contiguous, the matrices in x's dtype -> [tokens, hidden].
Tensor dense_experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor proj) {
    STD_TORCH_CHECK(x.is_contiguous() && fc.is_contiguous() && proj.is_contiguous() && chosen.is_contiguous());
    STD_TORCH_CHECK(weights.is_contiguous() && x.scalar_type() == fc.scalar_type());
    Tensor result = torch::stable::empty_like(x);
    const auto dtype = x.scalar_type();
    const Experts e{x.data_ptr(), fc.data_ptr(), proj.data_ptr(), static_cast<const float*>(weights.data_ptr()),
                    result.data_ptr(), x.size(0), x.size(1), proj.size(2), chosen.size(1)};
    if (e.tokens == 0) return result;
    const int64_t pairs = e.tokens * e.top_k;
    const Routing routing(static_cast<const int64_t*>(chosen.data_ptr()), pairs, e.top_k, fc.size(0), pairs + 1);
    const auto compute = takes_tiles(dtype) ? amx::experts_tiles : FOR_PATH_AND_TYPE(experts_vectors, dtype);
    compute(e, routing);
    return result;
}

}  // namespace
}  // namespace mixtral

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def("dense_linear(Tensor x, Tensor weight) -> Tensor");
    m.def("dense_experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor proj) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) {
    m.impl("dense_linear", TORCH_BOX(&mixtral::dense_linear));
    m.impl("dense_experts", TORCH_BOX(&mixtral::dense_experts));
}
