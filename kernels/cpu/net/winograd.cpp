#include "net/winograd.h"

#include <algorithm>

namespace encodec {

Winograd::Winograd(const Ops& ops, const float* weight, const std::vector<int64_t>& row_offsets,
                   const std::vector<int64_t>& col_offsets, int64_t frames, bool whole)
    : frames_(frames),
      depth_(static_cast<int64_t>(row_offsets.size()) / frames),
      cols_(static_cast<int64_t>(col_offsets.size())),
      whole_(whole),
      zeros_(std::max(cols_, depth_), 0.0f) {
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

int64_t Winograd::scratch(int64_t windows) const {
  const int64_t groups = windows / group() + 2, overlap = frames_ - 1;
  return terms() * (groups * padded_stride(depth_) + kCacheLine) + 2 * groups * cols_ + overlap * depth_;
}

void Winograd::run(const Ops& ops, const float* x, Activation activation, int64_t index, int64_t windows, const float* bias, float* out,
                   float* scratch) const {
  const int64_t step = group(), overlap = frames_ - 1;
  const int64_t first = -(index % step);  // window of the first group's first, which need not be there
  const int64_t groups = (windows - first + step - 1) / step;
  // the terms' distance is no power of two either: all of them are written together
  const int64_t stride = padded_stride(depth_), term_stride = groups * stride + kCacheLine;
  float* const left = scratch + terms() * term_stride;
  float* const right = left + groups * cols_;
  ops.input_transform({x, windows + overlap, depth_, zeros_.data(), activation, first, groups, step, overlap, scratch, stride, term_stride,
                       right + groups * cols_});
  const auto share = [&](const Floats& weight, int64_t term, const float* start, float* to) {
    const Segment rows = {scratch + term * term_stride, stride, depth_};
    ops.product({&rows, 1, weight.data(), start, nullptr, 0, to, cols_, groups, cols_, depth_});
  };
  // Of each group the window at `place`: how many there are, from which group on, and where the first one lies.
  struct Places {
    int64_t count, group, window;
  };
  const auto places = [&](int64_t place) -> Places {
    const int64_t group = first + place < 0 ? 1 : 0, window = first + place + group * step;
    return {(windows - window + step - 1) / step, group, window};
  };
  // The shared part is added at the end: a chain that began with it would round at its height all along, 1.2 times the error.
  const auto finish = [&](const Floats& weight, int64_t term, const float* part, int64_t place) {
    const Places at = places(place);
    const Segment rows = {scratch + term * term_stride + at.group * stride, stride, depth_};
    if (at.count > 0)
      ops.product({&rows, 1, weight.data(), zeros_.data(), part + at.group * cols_, cols_, out + at.window * cols_, step * cols_, at.count,
                   cols_, depth_});
  };
  share(sum_, 0, bias, left);
  if (terms() == 3) {
    finish(first_, 1, left, 0);
    finish(last_, 2, left, 1);
    return;
  }
  share(alternating_, 1, zeros_.data(), right);
  int64_t done = 0;
  if (step == 3) {
    // the window in the middle is the difference itself
    done = places(1).count;
    ops.sums_and_differences(left, right, out + cols_, step * cols_, done, cols_);
  }
  ops.sums_and_differences(left + done * cols_, right + done * cols_, right + done * cols_, cols_, groups - done, cols_);
  finish(first_, 2, left, 0);
  finish(last_, 3, step == 3 ? left : right, step - 1);
}

}  // namespace encodec
