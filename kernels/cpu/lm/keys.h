// The keys and values of a segment's last steps: a ring of blocks of 16 keys.
//
// A layer's ring lies head by head: the keys of a head as [blocks, dim, 16], and then its values as [positions, value_stride]. One step
// reads all of it, in a row and through few pages.
#pragma once

#include <algorithm>
#include <vector>

#include "runtime/memory.h"
#include "simd/ops.h"

namespace encodec {

struct KeyShape {
  int64_t layers, heads, dim, past_context;

  int64_t value_stride() const { return (dim + 31) / 32 * 32; }
  // Blocks of a ring that keeps what `rows` steps at once attend to, in a segment of at most `steps`.
  int64_t blocks(int64_t rows, int64_t steps) const {
    return std::min((past_context + rows + kBlockKeys - 2) / kBlockKeys, steps / kBlockKeys) + 1;
  }
};

class Keys {
 public:
  Keys() = default;
  Keys(const KeyShape& shape, int64_t rows, int64_t steps)
      : shape_(shape), blocks_(shape.blocks(rows, steps)), head_floats_(blocks_ * kBlockKeys * (shape.dim + shape.value_stride())),
        memory_(shape.layers * shape.heads * head_floats_), used_(blocks_, false) {}

  // Has room for keys [first, first + count), each in place of one that lies a ring before it.
  void reserve(int64_t first, int64_t count) {
    for (int64_t number = first / kBlockKeys; number <= (first + count - 1) / kBlockKeys; ++number) {
      const int64_t block = number % blocks_;
      if (used_[block]) continue;
      used_[block] = true;
      // lanes without a key are read, and their products left out
      for (int64_t layer = 0; layer < shape_.layers; ++layer)
        for (int64_t h = 0; h < shape_.heads; ++h)
          std::fill_n(head(layer, h) + block * shape_.dim * kBlockKeys, shape_.dim * kBlockKeys, 0.0f);
    }
  }

  // key, value: [heads * dim].
  void put(int64_t layer, int64_t position, const float* key, const float* value) {
    for (int64_t h = 0; h < shape_.heads; ++h, key += shape_.dim, value += shape_.dim) {
      float* keys = key_of(layer, h, position);
      for (int64_t d = 0; d < shape_.dim; ++d) keys[d * kBlockKeys] = key[d];
      std::copy_n(value, shape_.dim, value_of(layer, h, position));
    }
  }
  void get(int64_t layer, int64_t position, float* key, float* value) const {
    for (int64_t h = 0; h < shape_.heads; ++h, key += shape_.dim, value += shape_.dim) {
      const float* keys = key_of(layer, h, position);
      for (int64_t d = 0; d < shape_.dim; ++d) key[d] = keys[d * kBlockKeys];
      std::copy_n(value_of(layer, h, position), shape_.dim, value);
    }
  }

  // Names a layer's ring to an attention.
  void show(int64_t layer, Attention& attention) const {
    attention.ring = head(layer, 0);
    attention.ring_blocks = blocks_;
    attention.head_floats = head_floats_;
  }

 private:
  float* head(int64_t layer, int64_t h) const { return const_cast<float*>(memory_.data()) + (layer * shape_.heads + h) * head_floats_; }
  float* key_of(int64_t layer, int64_t h, int64_t position) const {
    const int64_t place = position % (blocks_ * kBlockKeys);
    return head(layer, h) + place / kBlockKeys * shape_.dim * kBlockKeys + place % kBlockKeys;
  }
  float* value_of(int64_t layer, int64_t h, int64_t position) const {
    const int64_t positions = blocks_ * kBlockKeys;
    return head(layer, h) + positions * shape_.dim + position % positions * shape_.value_stride();
  }

  KeyShape shape_ = {};
  int64_t blocks_ = 0, head_floats_ = 0;
  Floats memory_;
  std::vector<bool> used_;
};

}  // namespace encodec
