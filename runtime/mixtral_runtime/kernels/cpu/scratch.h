// Memory that a thread keeps between calls: large blocks from the system would be cleared page by page on each.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace mixtral {

class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // At least `size` bytes, of any content, that stay until the next call. Aligned to a cache line.
    void* bytes(int64_t size) {
        if (size > size_) {
            std::free(memory_);
            size_ = 0;
            memory_ = std::aligned_alloc(64, (size + 63) / 64 * 64);
            if (memory_ == nullptr) throw std::bad_alloc();
            size_ = size;
        }
        return memory_;
    }

  private:
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace mixtral
