// Float arrays that lie on cache lines and, where they are large, on huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace encodec {

constexpr int64_t kCacheLine = 16;  // floats

// Floats from one row to the next: rows that lie a large power of two apart would share a few sets of the first-level cache.
inline int64_t padded_stride(int64_t width) { return width >= 256 ? width + kCacheLine : width; }

class Floats {
 public:
  Floats() = default;
  // Uninitialised.
  explicit Floats(int64_t count) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    // weights are read once a step: in pages of 4 KiB, address translation takes up to a third of the time
    const size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine * sizeof(float);
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    // not aligned_alloc, which Windows lacks
    memory_ = {static_cast<float*>(::operator new(rounded ? rounded : alignment, std::align_val_t(alignment))), Free{alignment}};
#if defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(memory_.get(), rounded, MADV_HUGEPAGE);  // a hint: refused, it changes nothing
#endif
  }

  float* data() { return memory_.get(); }
  const float* data() const { return memory_.get(); }

 private:
  struct Free {
    size_t alignment;
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t(alignment)); }
  };
  std::unique_ptr<float[], Free> memory_{nullptr, Free{kCacheLine * sizeof(float)}};
};

// Grow-only. Growing loses the contents.
class Buffer {
 public:
  float* reserve(int64_t count) {
    if (count > capacity_) {
      memory_ = Floats();
      capacity_ = 0;  // the next line may throw
      memory_ = Floats(count);
      capacity_ = count;
    }
    return memory_.data();
  }

  int64_t capacity() const { return capacity_; }

 private:
  Floats memory_;
  int64_t capacity_ = 0;
};

}  // namespace encodec
