#include "winograd.h"

#include <algorithm>

namespace encodec {

Winograd::Winograd(const Ops& ops, const float* weight, const std::vector<int64_t>& row_offsets,
                   const std::vector<int64_t>& col_offsets, int64_t frames, bool whole)
    : frames_(frames),
      depth_(static_cast<int64_t>(row_offsets.size()) / frames),
      cols_(static_cast<int64_t>(col_offsets.size())),
      whole_(whole),
      zeros_(cols_, 0.0f) {
  std::vector<int64_t> dense_rows(depth_), dense_cols(cols_);
  for (int64_t k = 0; k < depth_; ++k) dense_rows[k] = k * cols_;
  for (int64_t n = 0; n < cols_; ++n) dense_cols[n] = n;
  std::vector<float> dense(depth_ * cols_);
  // function(g): g[j] is the element of G[j]
  const auto packed = [&](const auto& function) {
    for (int64_t k = 0; k < depth_; ++k)
      for (int64_t n = 0; n < cols_; ++n) {
        float g[3] = {};
        for (int64_t j = 0; j < frames_; ++j) g[j] = weight[row_offsets[j * depth_ + k] + col_offsets[n]];
        dense[k * cols_ + n] = function(g);
      }
    Floats floats(ops.packed_size(depth_, cols_));
    ops.pack(dense.data(), dense_rows.data(), dense_cols.data(), 1.0f, depth_, cols_, floats.data());
    return floats;
  };
  first_ = packed([](const float* g) { return g[0]; });
  last_ = packed([&](const float* g) { return -g[frames_ - 1]; });
  if (group() == 3) {
    sum_ = packed([](const float* g) { return (g[0] + g[1]) * 0.5f; });
    alternating_ = packed([](const float* g) { return (g[0] - g[1]) * 0.5f; });
  } else if (frames_ == 2) {
    sum_ = packed([](const float* g) { return g[0] + g[1]; });
  } else {
    sum_ = packed([](const float* g) { return ((g[0] + g[2]) + g[1]) * 0.5f; });
    alternating_ = packed([](const float* g) { return ((g[0] + g[2]) - g[1]) * 0.5f; });
  }
}

int64_t Winograd::scratch(int64_t frame_stride, int64_t windows) const {
  // one kind of sums or differences of frames at a time, what the windows of a three share, and a last three that is not whole
  if (group() == 3) return (windows / 3 + 1) * (frame_stride + 2 * cols_) + 4 * frame_stride + 3 * cols_;
  // every window's difference of frames; of every pair what its windows share, and of three frames two sums besides
  const int64_t pairs = windows / 2 + 1;
  return windows * frame_stride + (frames_ == 2 ? pairs * cols_ : 2 * pairs * (frame_stride + cols_));
}

void Winograd::run(const Ops& ops, const float* x, int64_t frame_stride, int64_t index, int64_t windows, const float* bias,
                   float* out, float* scratch) const {
  if (group() == 2) return run_pairs(ops, x, frame_stride, index, windows, bias, out, scratch);
  const int64_t threes = windows / 3, rest = windows % 3;
  run_threes(ops, x, frame_stride, threes, bias, out, scratch);
  if (rest == 0) return;
  // frames beyond the last are zeros, of which nothing comes to the windows that are there
  float* const frames = scratch + frame_stride + 2 * cols_;
  float* const results = frames + 4 * frame_stride;
  std::fill_n(frames, 4 * frame_stride, 0.0f);
  for (int64_t frame = 0; frame <= rest; ++frame)
    std::copy_n(x + (3 * threes + frame) * frame_stride, depth_, frames + frame * frame_stride);
  run_threes(ops, frames, frame_stride, 1, bias, results, scratch);
  std::copy_n(results, rest * cols_, out + 3 * threes * cols_);
}

void Winograd::run_threes(const Ops& ops, const float* x, int64_t frame_stride, int64_t threes, const float* bias, float* out,
                          float* scratch) const {
  if (threes == 0) return;
  const int64_t step = 3 * frame_stride;
  float* const terms = scratch;
  float* const left = terms + threes * frame_stride;
  float* const right = left + threes * cols_;
  const Segment rows = {terms, frame_stride, depth_};
  const auto multiply = [&](const Floats& weight, const float* start, const float* part, float* to, int64_t stride) {
    ops.product({&rows, 1, weight.data(), start, part, cols_, to, stride, threes, cols_, depth_});
  };
  const float *const second = x + frame_stride, *const third = second + frame_stride, *const fourth = third + frame_stride;
  ops.add_rows(second, third, step, terms, frame_stride, threes, depth_);
  multiply(sum_, bias, nullptr, left, cols_);
  ops.subtract_rows(third, second, step, terms, frame_stride, threes, depth_);
  multiply(alternating_, zeros_.data(), nullptr, right, cols_);
  ops.subtract_rows(left, right, cols_, out + cols_, 3 * cols_, threes, cols_);
  ops.add_rows(left, right, cols_, left, cols_, threes, cols_);
  ops.subtract_rows(x, third, step, terms, frame_stride, threes, depth_);
  multiply(first_, zeros_.data(), left, out, 3 * cols_);
  ops.subtract_rows(second, fourth, step, terms, frame_stride, threes, depth_);
  multiply(last_, zeros_.data(), left, out + 2 * cols_, 3 * cols_);
}

void Winograd::run_pairs(const Ops& ops, const float* x, int64_t frame_stride, int64_t index, int64_t windows, const float* bias,
                         float* out, float* scratch) const {
  const int64_t even = index % 2, odd = 1 - even;  // the first window of either kind
  const int64_t pairs = (even + windows + 1) / 2, step = 2 * frame_stride;
  const float* middle = x + odd * frame_stride;  // x[2p + 1] of the first pair
  float* const differences = scratch;
  float* const shared = differences + windows * frame_stride;
  float* even_shared = shared;
  float* odd_shared = shared;
  if (frames_ == 2) {
    const Segment middles = {middle, step, depth_};
    ops.product({&middles, 1, sum_.data(), bias, nullptr, 0, shared, cols_, pairs, cols_, depth_});
  } else {
    odd_shared = shared + pairs * cols_;
    float* const sums = odd_shared + pairs * cols_;
    float* const alternating = sums + pairs * frame_stride;
    ops.add_rows(middle, middle + frame_stride, step, sums, frame_stride, pairs, depth_);
    ops.subtract_rows(middle + frame_stride, middle, step, alternating, frame_stride, pairs, depth_);
    const Segment left = {sums, frame_stride, depth_}, right = {alternating, frame_stride, depth_};
    ops.product({&left, 1, sum_.data(), bias, nullptr, 0, even_shared, cols_, pairs, cols_, depth_});
    ops.product({&right, 1, alternating_.data(), zeros_.data(), nullptr, 0, odd_shared, cols_, pairs, cols_, depth_});
    ops.butterfly(even_shared, odd_shared, pairs * cols_);
  }
  ops.subtract_rows(x, x + (frames_ - 1) * frame_stride, frame_stride, differences, frame_stride, windows, depth_);
  // Every second window from `first` on. The shared part is added at the end: a chain that began with it would round at its height
  // all along, 1.2 times the error.
  const auto finish = [&](const Floats& weight, const float* part, int64_t first) {
    const Segment own = {differences + first * frame_stride, step, depth_};
    const int64_t rows = (windows - first + 1) / 2;
    if (rows > 0)
      ops.product({&own, 1, weight.data(), zeros_.data(), part, cols_, out + first * cols_, 2 * cols_, rows, cols_, depth_});
  };
  // a first window that is odd has a pair of its own, so the even one after it is of the second pair
  finish(first_, even_shared + even * cols_, even);
  finish(last_, odd_shared, odd);
}

}  // namespace encodec
