// mixtral_cpu::int8_experts

#include <torch/csrc/stable/library.h>

#include <vector>

#include "floats.h"
#include "int8.h"
#include "int8_work.h"
#include "parallel.h"
#include "routing.h"
#include "weighted_sum.h"

namespace mixtral::int8 {
namespace {

using torch::stable::Tensor;

constexpr int64_t WAVE_ROWS = 512;  // pairs whose [intermediate] float32 are kept at a time, if one expert has no more

// Rows begin <= n < end of a segment's matrix.
struct Task {
    Segment segment;
    int64_t begin, end;
};

std::vector<Task> split(const Segment* segments, int64_t count, int64_t out, int64_t in) {
    std::vector<Task> tasks;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t block = rows_at_once(out, in, segments[i].count);
        for (int64_t n = 0; n < out; n += block) tasks.push_back({segments[i], n, std::min(n + block, out)});
    }
    return tasks;
}

// y [rows of the segment][stride], or in tiles [tiles][stride][16], from n = begin on.
void multiply(const Matrix& matrix, const Task& task, int64_t begin, int64_t end, const Activations& x, int64_t row,
              const int32_t* index, float* y, int64_t stride, bool transposed) {
    if (task.segment.tiles)
        multiply_tiles(matrix, begin, end, x, row, task.segment.count, y, transposed ? stride * TILE : stride, transposed);
    else
        multiply_rows()(matrix, begin, end, x, index, task.segment.count, y, stride);
}

// x [tokens, hidden]; chosen int64 and weights float32 [tokens, top_k]; fc int8 [experts, 2 * intermediate, hidden], up
// first, with scales float32 [experts, 2 * intermediate]; proj int8 [experts, hidden, intermediate] with scales
// [experts, hidden]. All contiguous. -> [tokens, hidden] in x's dtype. Of fc and proj only the chosen experts are read.
Tensor experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor fc_scales, Tensor proj, Tensor proj_scales) {
    const int64_t tokens = x.size(0), hidden = x.size(1), top_k = chosen.size(1), count = fc.size(0);
    const int64_t intermediate = proj.size(2);
    const ScalarType dtype = x.scalar_type();
    const auto* from = x.const_data_ptr();
    Tensor result = torch::stable::new_empty(x, {tokens, hidden});
    if (tokens == 0) return result;
    const bool amx = path() == Path::amx;
    const Routing routing((const int64_t*)chosen.const_data_ptr(), tokens * top_k, top_k, count,
                          amx ? TILE_TOKENS : tokens * top_k + 1);
    const int64_t rows = routing.tokens.size();

    thread_local Scratch memory[5];
    const Activations in = activations(memory[0], tokens, hidden, dtype);
    for_each((tokens + TILE - 1) / TILE, [&](int64_t group) {
        for (int64_t t = group * TILE; t < std::min(tokens, (group + 1) * TILE); ++t) quantize_token(from, dtype, t, in, t);
    });
    auto* y = (float*)memory[1].bytes(rows * hidden * 4);  // [rows][hidden], an expert's answer to each pair

    const auto& segments = routing.segments;
    for (size_t first = 0, next; first < segments.size(); first = next) {
        const int64_t base = segments[first].start;  // the wave's first row
        int64_t wave_end = base;
        for (next = first; next < segments.size(); ++next) {
            const Segment& s = segments[next];
            const int64_t end = s.start + (s.tiles ? round_up(s.count, TILE) : s.count);
            if (next > first && end - base > WAVE_ROWS) break;
            wave_end = end;
        }
        const Segment* wave = &segments[first];
        const int64_t wave_rows = wave_end - base;
        const Activations packed = activations(memory[2], amx ? wave_rows : 0, hidden, dtype);
        if (amx) {
            std::vector<Task> groups;
            for (size_t i = first; i < next; ++i)
                if (segments[i].tiles)
                    for (int64_t at = 0; at < segments[i].count; at += TILE)
                        groups.push_back({segments[i], at, std::min(at + TILE, segments[i].count)});
            for_each(groups.size(), [&](int64_t i) {
                const Task& g = groups[i];
                const int64_t row = g.segment.start + g.begin;
                pack_tile(in, routing.tokens.data() + row, g.end - g.begin, packed, row - base);
            });
        }

        // [wave rows][intermediate], or in tiles [intermediate][16]
        auto* inner = (float*)memory[3].bytes(wave_rows * intermediate * 4);
        const auto up_tasks = split(wave, next - first, intermediate, 2 * hidden);
        for_each(up_tasks.size(), [&](int64_t i) {
            const Task& task = up_tasks[i];
            const Segment& s = task.segment;
            const Matrix matrix = matrix_of(fc, fc_scales, s.expert, count);
            const int64_t block = task.end - task.begin, lines = s.tiles ? round_up(s.count, TILE) : s.count;
            thread_local Scratch part;
            auto* up = (float*)part.bytes(2 * lines * block * 4);
            float* gate = up + lines * block;
            const int32_t* index = routing.tokens.data() + s.start;
            const Activations& a = s.tiles ? packed : in;
            multiply(matrix, task, task.begin, task.end, a, s.start - base, index, up, block, true);
            multiply(matrix, task, intermediate + task.begin, intermediate + task.end, a, s.start - base, index, gate,
                     block, true);
            swiglu(gate, up, lines * block);
            const int64_t height = s.tiles ? TILE : 1;
            for (int64_t line = 0; line < lines; line += height)
                std::copy_n(gate + line * block, block * height,
                            inner + (s.start - base + line) * intermediate + task.begin * height);
        });

        const Activations quantized = activations(memory[4], wave_rows, intermediate, dtype);
        std::vector<Segment> lines;
        for (size_t i = first; i < next; ++i)
            for (int64_t at = 0; at < segments[i].count; at += segments[i].tiles ? TILE : 1)
                lines.push_back({segments[i].expert, segments[i].start + at - base, 1, segments[i].tiles});
        for_each(lines.size(), [&](int64_t i) {
            const float* line = inner + lines[i].start * intermediate;
            if (lines[i].tiles)
                quantize_tile(line, quantized, lines[i].start);
            else
                quantize_row(line, quantized, lines[i].start);
        });

        std::vector<int32_t> identity(wave_rows);
        for (int64_t i = 0; i < wave_rows; ++i) identity[i] = int32_t(i);
        const auto down_tasks = split(wave, next - first, hidden, intermediate);
        for_each(down_tasks.size(), [&](int64_t i) {
            const Task& task = down_tasks[i];
            const int64_t start = task.segment.start;
            multiply(matrix_of(proj, proj_scales, task.segment.expert, count), task, task.begin, task.end, quantized,
                     start - base, identity.data() + start - base, y + start * hidden + task.begin, hidden, false);
        });
    }

    const auto* shares = (const float*)weights.const_data_ptr();
    weighted_sum(y, routing, shares, tokens, top_k, hidden, result.mutable_data_ptr(), dtype);
    return result;
}

}  // namespace
}  // namespace mixtral::int8

STABLE_TORCH_LIBRARY_FRAGMENT(mixtral_cpu, m) {
    m.def(
        "int8_experts(Tensor x, Tensor chosen, Tensor weights, Tensor fc, Tensor fc_scales, Tensor proj, "
        "Tensor proj_scales) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mixtral_cpu, CPU, m) { m.impl("int8_experts", TORCH_BOX(&mixtral::int8::experts)); }
