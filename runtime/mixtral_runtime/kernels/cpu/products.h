// A linear layer and a mixture of experts over any format that says how its tokens are prepared and multiplied.
//
// A Format is one matrix [out, in] with
//   ROWS, BLOCK           the most rows and tokens of one `multiply`
//   out, in
//   Tokens                tokens that are ready to be multiplied
//   tile_tokens()         from how many tokens on they are stored in tiles of 16
//   tokens(memory, rows, in, dtype)   room for them
//   part(tokens, start, count)        those of one matrix: `count` from row `start` on, in tiles a multiple of 16
//   prepare(x, row, tokens), clear(row, tokens)   x [in] float32, which may be changed; clear: what fills a tile up
//   multiply(row, rows, tokens, first, count, out)   rows of the matrix times tokens -> out [count, ROWS] float32
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "floats.h"
#include "parallel.h"
#include "routing.h"
#include "scratch.h"
#include "weighted_sum.h"

namespace mixtral {

// Rows of a matrix times some of its tokens, small enough to share the work and large enough to be worth handing out.
struct Task {
    int64_t segment, row, rows, first, count;
};

// count[i]: tokens of segment i. Tasks that follow each other share their tokens.
template <class Format>
std::vector<Task> split(const std::vector<int64_t>& counts, int64_t out, int64_t in) {
    constexpr int64_t CACHE = 3 << 19;  // bytes of tokens, two for each value, that stay in the second-level cache
    constexpr int64_t VALUES = 1 << 18;  // of a task's weights, at most
    const int64_t block = std::clamp<int64_t>(CACHE / (2 * in) / 16 * 16, 16, Format::BLOCK);
    const int64_t share = out / (4 * threads()) + 1;  // so that every thread has some
    const int64_t rows = std::max<int64_t>(1, std::min(VALUES / in, share) / Format::ROWS) * Format::ROWS;
    std::vector<Task> tasks;
    for (size_t segment = 0; segment < counts.size(); ++segment)
        for (int64_t first = 0; first < counts[segment]; first += block)
            for (int64_t row = 0; row < out; row += rows)
                tasks.push_back({int64_t(segment), row, std::min(rows, out - row), first,
                                 std::min(block, counts[segment] - first)});
    return tasks;
}

// Calls to(row, rows, values) for each of the task's rows, ROWS at a time: values [count, ROWS] of `matrix`.
template <class Format, class To>
void multiply_task(const Format& matrix, const Task& task, const typename Format::Tokens& tokens, const To& to) {
    alignas(64) float values[Format::BLOCK * Format::ROWS];
    for (int64_t row = task.row; row < task.row + task.rows; row += Format::ROWS) {
        const int64_t rows = std::min(Format::ROWS, task.row + task.rows - row);
        matrix.multiply(row, rows, tokens, task.first, task.count, values);
        to(row, rows, values);
    }
}

// x [tokens, in] contiguous -> [tokens, out] in its dtype.
template <class Format>
torch::stable::Tensor linear(const torch::stable::Tensor& x, const Format& matrix) {
    const int64_t tokens = x.size(0);
    const ScalarType dtype = x.scalar_type();
    torch::stable::Tensor result = torch::stable::new_empty(x, {tokens, matrix.out});
    const void* from = x.const_data_ptr();
    void* to = result.mutable_data_ptr();
    const bool tiles = tokens >= Format::tile_tokens();
    const int64_t rows = tiles ? (tokens + 15) / 16 * 16 : tokens;
    thread_local Scratch memory;
    const auto all = Format::part(Format::tokens(memory, rows, matrix.in, dtype), 0, tokens);
    for_each((rows + 15) / 16, [&](int64_t group) {
        thread_local Scratch row;
        auto* values = static_cast<float*>(row.bytes(matrix.in * sizeof(float)));
        for (int64_t t = 16 * group; t < std::min(rows, 16 * group + 16); ++t) {
            if (t >= tokens) {
                Format::clear(t, all);
                continue;
            }
            load_floats(from, dtype, t * matrix.in, matrix.in, values);
            matrix.prepare(values, t, all);
        }
    });
    const auto tasks = split<Format>({tokens}, matrix.out, matrix.in);
    for_each(tasks.size(), [&](int64_t i) {
        const Task& task = tasks[i];
        multiply_task(matrix, task, all, [&](int64_t row, int64_t count, const float* values) {
            for (int64_t t = 0; t < task.count; ++t)
                store_floats(values + t * Format::ROWS, count, to, dtype, (task.first + t) * matrix.out + row);
        });
    });
    return result;
}

// Some experts' tokens on their way: rows `base` and following of a Routing.
template <class Format>
class Wave {
  public:
    Wave(const Routing& routing, size_t first, size_t last, ScalarType dtype) : routing_(routing), dtype_(dtype) {
        base_ = routing.segments[first].start;
        for (size_t i = first; i < last; ++i) {
            segments_.push_back(routing.segments[i]);
            segments_.back().start -= base_;
            counts_.push_back(segments_.back().count);
        }
        const Segment& end = segments_.back();
        rows_ = end.start + (end.tiles ? (end.count + 15) / 16 * 16 : end.count);
    }

    // Of each row load(row, values) gives the [in] values.
    template <class Load>
    void prepare(const std::vector<Format>& matrices, const Load& load) {
        thread_local Scratch memory;
        const int64_t in = matrices[0].in;
        const auto all = Format::tokens(memory, rows_, in, dtype_);
        tokens_.clear();
        std::vector<Task> groups;
        for (size_t i = 0; i < segments_.size(); ++i) {
            const Segment& s = segments_[i];
            tokens_.push_back(Format::part(all, s.start, s.count));
            const int64_t filled = s.tiles ? (s.count + 15) / 16 * 16 : s.count;
            for (int64_t first = 0; first < filled; first += 16)
                groups.push_back({int64_t(i), 0, 0, first, std::min<int64_t>(16, filled - first)});
        }
        for_each(groups.size(), [&](int64_t i) {
            const Task& group = groups[i];
            const Segment& s = segments_[group.segment];
            thread_local Scratch row;
            auto* values = static_cast<float*>(row.bytes(in * sizeof(float)));
            for (int64_t t = group.first; t < group.first + group.count; ++t) {
                if (t >= s.count) {
                    Format::clear(t, tokens_[group.segment]);
                    continue;
                }
                load(s.start + t, values);
                matrices[s.expert].prepare(values, t, tokens_[group.segment]);
            }
        });
    }

    // SwiGLU of fc's rows, up projection first -> inner [rows, intermediate].
    void up(const std::vector<Format>& fc, void* inner) const {
        const int64_t intermediate = fc[0].out / 2;
        const auto tasks = split<Format>(counts_, intermediate, 2 * fc[0].in);
        for_each(tasks.size(), [&](int64_t i) {
            const Task& task = tasks[i];
            const Segment& s = segments_[task.segment];
            multiply_task(fc[s.expert], task, tokens_[task.segment], [&](int64_t row, int64_t count, float* up) {
                alignas(64) float gate[Format::BLOCK * Format::ROWS];
                fc[s.expert].multiply(intermediate + row, count, tokens_[task.segment], task.first, task.count, gate);
                for (int64_t t = 0; t < task.count; ++t) {
                    const int64_t at = t * Format::ROWS;
                    swiglu(gate + at, up + at, count);
                    store_floats(gate + at, count, inner, dtype_, (s.start + task.first + t) * intermediate + row);
                }
            });
        });
    }

    // proj's rows -> y [rows of the routing, hidden].
    void down(const std::vector<Format>& proj, float* y) const {
        const int64_t hidden = proj[0].out;
        const auto tasks = split<Format>(counts_, hidden, proj[0].in);
        for_each(tasks.size(), [&](int64_t i) {
            const Task& task = tasks[i];
            const Segment& s = segments_[task.segment];
            float* to = y + (base_ + s.start + task.first) * hidden;
            const auto store = [&](int64_t row, int64_t count, const float* values) {
                for (int64_t t = 0; t < task.count; ++t)
                    std::copy_n(values + t * Format::ROWS, count, to + t * hidden + row);
            };
            multiply_task(proj[s.expert], task, tokens_[task.segment], store);
        });
    }

    int64_t rows() const { return rows_; }
    int64_t base() const { return base_; }

  private:
    const Routing& routing_;
    ScalarType dtype_;
    int64_t base_, rows_;
    std::vector<Segment> segments_;  // `start` from the wave's first row on
    std::vector<int64_t> counts_;
    std::vector<typename Format::Tokens> tokens_;  // of each segment
};

// x [tokens, hidden]; chosen int64 and weights float32 [tokens, top_k], contiguous; fc [2 * intermediate, hidden], up
// first, and proj [hidden, intermediate] of each expert -> [tokens, hidden] in x's dtype.
template <class Format>
torch::stable::Tensor experts(const torch::stable::Tensor& x, const torch::stable::Tensor& chosen,
                              const torch::stable::Tensor& weights, const std::vector<Format>& fc,
                              const std::vector<Format>& proj) {
    constexpr size_t WAVE_ROWS = 1024;  // pairs of a wave, more only if one expert has more
    const int64_t tokens = x.size(0), hidden = x.size(1), top_k = chosen.size(1), intermediate = proj[0].in;
    const ScalarType dtype = x.scalar_type();
    torch::stable::Tensor result = torch::stable::new_empty(x, {tokens, hidden});
    if (tokens == 0) return result;
    const void* from = x.const_data_ptr();
    const Routing routing(static_cast<const int64_t*>(chosen.const_data_ptr()), tokens * top_k, top_k, fc.size(),
                          Format::tile_tokens());
    thread_local Scratch memory[2];
    auto* y = static_cast<float*>(memory[0].bytes(routing.tokens.size() * hidden * sizeof(float)));
    const auto& segments = routing.segments;
    for (size_t first = 0, last; first < segments.size(); first = last) {
        int64_t pairs = segments[first].count;
        for (last = first + 1; last < segments.size() && pairs + segments[last].count <= int64_t(WAVE_ROWS); ++last)
            pairs += segments[last].count;
        Wave<Format> wave(routing, first, last, dtype);
        wave.prepare(fc, [&](int64_t row, float* values) {
            load_floats(from, dtype, routing.tokens[wave.base() + row] * hidden, hidden, values);
        });
        void* inner = memory[1].bytes(wave.rows() * intermediate * sizeof(float));
        wave.up(fc, inner);
        wave.prepare(proj, [&](int64_t row, float* values) {
            load_floats(inner, dtype, row * intermediate, intermediate, values);
        });
        wave.down(proj, y);
    }
    const auto* shares = static_cast<const float*>(weights.const_data_ptr());
    weighted_sum(y, routing, shares, tokens, top_k, hidden, result.mutable_data_ptr(), dtype);
    return result;
}

}  // namespace mixtral
