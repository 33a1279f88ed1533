#include "winograd.h"

namespace encodec {

Winograd::Winograd(const Ops& ops, const float* weight, const std::vector<int64_t>& row_offsets,
                   const std::vector<int64_t>& col_offsets, int64_t frames)
    : frames_(frames),
      depth_(static_cast<int64_t>(row_offsets.size()) / frames),
      cols_(static_cast<int64_t>(col_offsets.size())),
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
  if (frames_ == 2) {
    sum_ = packed([](const float* g) { return g[0] + g[1]; });
  } else {
    sum_ = packed([](const float* g) { return ((g[0] + g[2]) + g[1]) * 0.5f; });
    alternating_ = packed([](const float* g) { return ((g[0] + g[2]) - g[1]) * 0.5f; });
  }
}

int64_t Winograd::scratch(int64_t frame_stride, int64_t windows) const {
  // of every window's frame difference; of three frames' pairs two combinations; and one or two starts of each pair
  const int64_t pairs = windows / 2 + 1;
  return windows * frame_stride + (frames_ == 2 ? pairs * cols_ : 2 * pairs * (frame_stride + cols_));
}

void Winograd::run(const Ops& ops, const float* x, int64_t frame_stride, int64_t index, int64_t windows, const float* bias,
                   float* out, float* scratch) const {
  const int64_t even = index % 2, odd = 1 - even;  // the first window of either kind
  const int64_t pairs = (even + windows + 1) / 2, step = 2 * frame_stride;
  const float* middle = x + odd * frame_stride;  // x[2p + 1] of the first pair
  float* const differences = scratch;
  float* const starts = differences + windows * frame_stride;
  // out[i] of `rows` rows `out_stride` apart, from frames two frames apart
  const auto multiply = [&](const Floats& weight, const float* frames, const float* first, const float* start, float* target,
                            int64_t target_stride, int64_t rows) {
    const Segment segment = {frames, step, depth_};
    if (rows > 0)
      ops.product({&segment, 1, weight.data(), first, nullptr, 0, target, target_stride, rows, cols_, depth_, start, cols_});
  };
  const float *even_start = starts, *odd_start = starts;
  if (frames_ == 2) {
    multiply(sum_, middle, bias, nullptr, starts, cols_, pairs);
  } else {
    float* const others = starts + pairs * cols_;
    float* const combined = others + pairs * cols_;
    ops.add_rows(middle, middle + frame_stride, step, combined, frame_stride, pairs, depth_);
    ops.subtract_rows(middle + frame_stride, middle, step, combined + pairs * frame_stride, frame_stride, pairs, depth_);
    const Segment sums = {combined, frame_stride, depth_}, alternating = {combined + pairs * frame_stride, frame_stride, depth_};
    ops.product({&sums, 1, sum_.data(), bias, nullptr, 0, starts, cols_, pairs, cols_, depth_});
    ops.product({&alternating, 1, alternating_.data(), zeros_.data(), nullptr, 0, others, cols_, pairs, cols_, depth_});
    ops.butterfly(starts, others, pairs * cols_);
    odd_start = others;
  }
  ops.subtract_rows(x, x + (frames_ - 1) * frame_stride, frame_stride, differences, frame_stride, windows, depth_);
  // a first window that is odd is the first pair's own; an even one after it belongs to the next pair
  multiply(first_, differences + even * frame_stride, nullptr, even_start + even * cols_, out + even * cols_, 2 * cols_,
           (windows - even + 1) / 2);
  multiply(last_, differences + odd * frame_stride, nullptr, odd_start, out + odd * cols_, 2 * cols_, (windows - odd + 1) / 2);
}

}  // namespace encodec
