// Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) over the blocks of a paged KV cache.
//
// Keys are taken in partitions of fixed length at absolute positions; each gives a softmax of its own, and they are put
// together in order (Dao et al. 2022, arXiv:2205.14135). The query heads of a key head, at consecutive positions, are
// the columns of a unit, and no column depends on another. So a token gets the same bits whether it was decoded or
// prefilled, in whatever chunks, with whatever beside it, and whichever threads did it.

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"  // in gcc 12's own intrinsics

#include <immintrin.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "arena.h"
#include "bf16_tiles.h"
#include "bits.h"
#include "numbers.h"
#include "parallel.h"
#include "path.h"

namespace mixtral {
namespace {

constexpr int64_t BLOCK = 32;        // tokens of a block of the cache
constexpr int64_t PARTITION = 256;   // keys
constexpr int64_t COLUMNS = 16;      // of a unit
constexpr int64_t UNITS = 16;        // of a task at most: they share the partition that was read for them
constexpr int64_t SERIAL = 1 << 18;  // multiplications that are not worth a second thread

// One key head of one sequence, some units of its columns, some partitions of its keys.
struct Task {
    const int64_t* span;  // an entry of Problem.spans
    int64_t kv_head, first_unit, units, all_columns;
    int64_t first_partition, end_partition, end;  // end: of the keys, a position
    int64_t split;  // which of Plan.splits this is a part of, or -1

    int64_t columns(int64_t unit) const { return std::min(COLUMNS, all_columns - (first_unit + unit) * COLUMNS); }
};

struct Problem {
    const void* queries;  // [tokens, heads, head_size]
    void* output;         // the same shape
    const char *keys, *values;  // of one layer: [blocks, BLOCK, kv_heads, head_size]
    bool fp8;
    float scale;  // of an FP8 cache
    float softmax_scale;
    int64_t heads, kv_heads, group, head_size;
    const int64_t* spans;   // [spans, 4]: first row, start, end (positions), first entry of the block table
    const int32_t* tables;  // block numbers of all sequences

    int64_t query_offset(const Task& task, int64_t column) const {
        column += task.first_unit * COLUMNS;
        return ((task.span[0] + column / group) * heads + task.kv_head * group + column % group) * head_size;
    }
    int64_t position(const Task& task, int64_t column) const {
        return task.span[1] + (task.first_unit * COLUMNS + column) / group;
    }
    int64_t block(const Task& task, int64_t position) const {
        return tables[task.span[3] + position / BLOCK];
    }
    int64_t slot(const Task& task, int64_t position) const {
        return block(task, position) * BLOCK + position % BLOCK;
    }
};

// Columns whose partitions are computed by several tasks.
struct Split {
    int64_t first, parts;  // in Plan.partials
    std::atomic<int64_t> left;

    Split(int64_t first, int64_t parts) : first(first), parts(parts), left(parts) {}
    Split(Split&& other) noexcept : first(other.first), parts(other.parts), left(other.left.load()) {}
};

struct Plan {
    std::vector<Task> tasks;
    std::vector<Split> splits;
    std::vector<float> partials;
    std::atomic<int64_t> next{0};
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The longest tasks first, so that no thread ends with one of them alone.
void make_plan(const Problem& problem, int64_t span_count, int64_t state_floats, int64_t threads, Plan& plan) {
    int64_t partials = 0;
    const bool few = span_count * problem.kv_heads < 4 * threads;
    for (int64_t i = 0; i < span_count; ++i) {
        const int64_t* span = problem.spans + 4 * i;
        const int64_t columns = (span[2] - span[1]) * problem.group, units = ceil_div(columns, COLUMNS);
        const int64_t parts = ceil_div(span[2], PARTITION);
        for (int64_t head = 0; head < problem.kv_heads; ++head) {
            if (units == 1 && few && parts > 1) {
                for (int64_t part = 0; part < parts; ++part)
                    plan.tasks.push_back(
                        {span, head, 0, 1, columns, part, part + 1, span[2], int64_t(plan.splits.size())});
                plan.splits.emplace_back(partials, parts);
                partials += parts;
                continue;
            }
            for (int64_t unit = (units - 1) / UNITS * UNITS; unit >= 0; unit -= UNITS) {
                const int64_t count = std::min(UNITS, units - unit);
                const int64_t last = std::min(columns, (unit + count) * COLUMNS) - 1;
                const int64_t end = span[1] + last / problem.group + 1;
                plan.tasks.push_back({span, head, unit, count, columns, 0, ceil_div(end, PARTITION), end, -1});
            }
        }
    }
    plan.partials.resize(partials * state_floats);
    const auto cost = [](const Task& t) { return t.units * (t.end_partition - t.first_partition); };
    std::stable_sort(plan.tasks.begin(), plan.tasks.end(),
                     [&](const Task& a, const Task& b) { return cost(a) > cost(b); });
}

int64_t multiplications(const Problem& problem, const Plan& plan) {
    int64_t total = 0;
    for (const Task& task : plan.tasks)
        total += task.units * COLUMNS * (task.end_partition - task.first_partition) * PARTITION * problem.head_size;
    return total;
}

}  // namespace

#define KERNEL "attention.inc"
#include "vector_paths.inc"

MIXTRAL_BEGIN_AMX
namespace amx {
namespace {
using namespace avx512;
#include "transpose.inc"
#include "attention_tiles.inc"
}  // namespace
}  // namespace amx
MIXTRAL_END

namespace {

// width: a column's floats in a partition's state.
template <class Work>
void run(const Problem& problem, int64_t span_count, int64_t width, const Work& work) {
    Plan plan;
    make_plan(problem, span_count, COLUMNS * (width + 2), threads(), plan);
    const int team = multiplications(problem, plan) < SERIAL ? 1 : std::min<int>(threads(), plan.tasks.size());
#pragma omp parallel num_threads(team)
    {
        static thread_local Arena arena;
        work(problem, plan, arena);
    }
}

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// queries: [tokens, heads * head_size]. storage: [layers, 2, blocks, BLOCK, kv_heads, head_size] of the same dtype, or
// uint8 for E4M3 with scales [layers] float32. spans: [spans, 4] int64, tables: [blocks] int32; see Problem.
Tensor paged_attention(Tensor queries, Tensor storage, std::optional<Tensor> scales, int64_t layer, Tensor spans,
                       Tensor tables) {
    Tensor output = torch::stable::empty_like(queries);
    const int64_t blocks = storage.size(2), kv_heads = storage.size(4), head_size = storage.size(5);
    const bool fp8 = scales.has_value();
    const auto dtype = queries.scalar_type();
    const int64_t item = fp8 ? 1 : dtype == ScalarType::Float ? 4 : 2;
    const int64_t half = blocks * BLOCK * kv_heads * head_size * item;
    const char* keys = static_cast<const char*>(storage.data_ptr()) + 2 * layer * half;
    STD_TORCH_CHECK(queries.is_contiguous() && storage.is_contiguous() && storage.size(3) == BLOCK);
    Problem problem{};
    problem.queries = queries.data_ptr();
    problem.output = output.data_ptr();
    problem.keys = keys;
    problem.values = keys + half;
    problem.fp8 = fp8;
    problem.scale = fp8 ? static_cast<const float*>(scales->data_ptr())[layer] : 1.0f;
    problem.softmax_scale = 1.0f / std::sqrt(float(head_size));
    problem.kv_heads = kv_heads;
    problem.head_size = head_size;
    problem.heads = queries.size(1) / head_size;
    problem.group = problem.heads / kv_heads;
    problem.spans = static_cast<const int64_t*>(spans.data_ptr());
    problem.tables = static_cast<const int32_t*>(tables.data_ptr());
    const int64_t count = spans.size(0);
    if (dtype == ScalarType::BFloat16 && path() == Path::amx && head_size % 32 == 0 && head_size <= amx::MAX_WIDTH)
        run(problem, count, head_size, amx::work_tiles);
    else
        run(problem, count, ceil_div(head_size, 16) * 16, FOR_PATH_AND_TYPE(work_vectors, dtype));
    return output;
}

}  // namespace
}  // namespace mixtral

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def(
        "paged_attention(Tensor queries, Tensor storage, Tensor? scales, int layer, Tensor spans, Tensor tables) -> "
        "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) { m.impl("paged_attention", TORCH_BOX(&mixtral::paged_attention)); }
