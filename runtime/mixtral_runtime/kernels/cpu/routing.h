// The (token, expert) pairs of a step, sorted by expert.
#pragma once

#include <cstdint>
#include <vector>

namespace mixtral {

// The tokens of one expert: rows `start` and following of what is computed for all pairs.
struct Segment {
    int64_t expert, start, count;
    bool tiles;  // in groups of 16, so that `start` is a multiple of 16
};

struct Routing {
    std::vector<Segment> segments;    // of the chosen experts, in order
    std::vector<int32_t> tokens;      // [rows] the token of each row; -1 fills a group of 16 up
    std::vector<int32_t> rows;        // [tokens * top_k] the row of each pair

    // chosen: [tokens * top_k], all below `experts`. Segments of at least `tile_tokens` pairs are in tiles.
    Routing(const int64_t* chosen, int64_t pairs, int64_t top_k, int64_t experts, int64_t tile_tokens) : rows(pairs) {
        std::vector<int64_t> counts(experts), next(experts);
        for (int64_t pair = 0; pair < pairs; ++pair) ++counts[chosen[pair]];
        int64_t end = 0;
        for (int64_t expert = 0; expert < experts; ++expert) {
            const int64_t count = counts[expert];
            if (count == 0) continue;
            const bool tiles = count >= tile_tokens;
            if (tiles) end = (end + 15) / 16 * 16;
            segments.push_back({expert, end, count, tiles});
            next[expert] = end;
            end += tiles ? (count + 15) / 16 * 16 : count;
        }
        tokens.assign(end, -1);
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t row = next[chosen[pair]]++;
            tokens[row] = int32_t(pair / top_k);
            rows[pair] = int32_t(row);
        }
    }
};

}  // namespace mixtral
