// A thread's buffers for one call, taken one after the other and kept for the next.
#pragma once

#include <deque>

#include "scratch.h"

namespace mixtral {

class Arena {
  public:
    void reset() { used_ = 0; }

    // `count` floats of any content, aligned to a cache line.
    float* floats(int64_t count) {
        if (used_ == buffers_.size()) buffers_.emplace_back();
        return static_cast<float*>(buffers_[used_++].bytes(count * sizeof(float)));
    }

  private:
    std::deque<Scratch> buffers_;
    size_t used_ = 0;
};

}  // namespace mixtral
