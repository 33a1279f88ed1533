#include "net/chunks.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/threads.h"

namespace encodec {
namespace {

// Steps of one task of the overlap-add: its sums and weights stay in the first-level cache.
constexpr int64_t kSteps = 2048;

// The sum of x [count], which is overwritten: the second half is added to the first, until one element is left.
float sum_by_halves(float* x, int64_t count) {
  while (count > 1) {
    const int64_t half = (count + 1) / 2;
    for (int64_t i = 0; i < count - half; ++i) x[i] += x[half + i];
    count = half;
  }
  return x[0];
}

}  // namespace

void normalize(const encodec_clips& x, int64_t batch, int64_t channels, int threads, const encodec_clips& y, float* scales) {
  parallel_for(threads, batch, [&](int64_t b) {
    const int64_t length = x.lengths[b];
    std::vector<float> squares(x.data[b], x.data[b] + length);
    for (int64_t c = 1; c < channels; ++c) {
      const float* row = x.data[b] + c * x.strides[b];
      for (int64_t t = 0; t < length; ++t) squares[t] += row[t];
    }
    for (float& value : squares) {
      const float mono = value / static_cast<float>(channels);
      value = mono * mono;
    }
    const float scale = std::sqrt(sum_by_halves(squares.data(), length) / static_cast<float>(length)) + 1e-8f;
    scales[b] = scale;
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = x.data[b] + c * x.strides[b];
      float* to = y.data[b] + c * y.strides[b];
      for (int64_t t = 0; t < length; ++t) to[t] = from[t] / scale;
    }
  });
}

void overlap_add(const encodec_clips& x, int64_t count, int64_t batch, int64_t channels, const float* weight, int64_t stride,
                 int threads, const encodec_clips& y) {
  const int64_t total = batch > 0 ? y.lengths[0] : 0;
  const int64_t longest = count * batch > 0 ? *std::max_element(x.lengths, x.lengths + count * batch) : 0;
  parallel_for(threads, (total + kSteps - 1) / kSteps, [&](int64_t task) {
    const int64_t begin = task * kSteps, steps = std::min(kSteps, total - begin);
    float sums[kSteps], weights[kSteps];
    // Calls body(chunk, to, from, steps) for clip b's chunks in this task.
    // to: the chunk's first step in this task.  from: this task's first step in the chunk.
    const auto each_chunk = [&](int64_t b, const auto& body) {
      for (int64_t i = std::max<int64_t>(0, begin - longest) / stride; i < count && i * stride < begin + steps; ++i) {
        const int64_t start = i * stride, end = start + x.lengths[i * batch + b];
        const int64_t first = std::max(begin, start), last = std::min(begin + steps, end);
        if (first < last) body(i, first - begin, first - start, last - first);
      }
    };
    std::fill_n(weights, steps, 0.0f);
    each_chunk(0, [&](int64_t, int64_t at, int64_t from, int64_t n) {
      for (int64_t t = 0; t < n; ++t) weights[at + t] += weight[from + t];
    });
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t c = 0; c < channels; ++c) {
        std::fill_n(sums, steps, 0.0f);
        each_chunk(b, [&](int64_t i, int64_t at, int64_t from, int64_t n) {
          const float* chunk = x.data[i * batch + b] + c * x.strides[i * batch + b] + from;
          for (int64_t t = 0; t < n; ++t) sums[at + t] += chunk[t] * weight[from + t];
        });
        float* out = y.data[b] + c * y.strides[b] + begin;
        for (int64_t t = 0; t < steps; ++t) out[t] = sums[t] / weights[t];
      }
  });
}

}  // namespace encodec
