#include "net/codebooks.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "net/stages.h"
#include "runtime/threads.h"

using namespace encodec;

namespace {

// Frames of one task of the search and of the lookup: fewer than the least would read the codebooks for too little.
constexpr int64_t kMostFrames = 192, kLeastFrames = 48;

// Calls body(clip, first frame, frames) for all frames of all clips.
template <class Function>
void each_frames(const int64_t* lengths, int64_t batch, int threads, const Function& body) {
  const int64_t share = (std::accumulate(lengths, lengths + batch, int64_t{0}) + threads - 1) / std::max(1, threads);
  const int64_t most = std::max(kLeastFrames, std::min(kMostFrames, share));
  std::vector<std::pair<int64_t, int64_t>> tasks;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t first = 0; first < lengths[b]; first += most) tasks.emplace_back(b, first);
  parallel_for(threads, static_cast<int64_t>(tasks.size()), [&](int64_t task) {
    const auto [b, first] = tasks[task];
    body(b, first, std::min(most, lengths[b] - first));
  });
}

}  // namespace

encodec_codebooks::encodec_codebooks(const Ops& tier, const float* entries, int64_t levels, int64_t size, int64_t dim)
    : ops_(tier), size_(size), dim_(dim), entries_(entries, entries + levels * size * dim), norms_(levels * size, 0.0f) {
  for (int64_t level = 0; level < levels; ++level)
    add_level(entries_.data() + level * size * dim, norms_.data() + level * size);
}

void encodec_codebooks::add_level(const float* entries, float* norms) {
  bool tame = true;
  double longest = 0;
  for (int64_t n = 0; n < size_; ++n) {
    double squares = 0;  // the square of a float is exact in double
    for (int64_t d = 0; d < dim_; ++d) {
      const double e = entries[n * dim_ + d];
      tame = tame && std::fabs(e) < 0x1p60;
      squares += e * e;
    }
    norms[n] = static_cast<float>(squares);
    longest = std::max(longest, std::sqrt(squares));
  }
  std::vector<int64_t> row_offsets(dim_), col_offsets(size_);
  for (int64_t d = 0; d < dim_; ++d) row_offsets[d] = d;
  for (int64_t n = 0; n < size_; ++n) col_offsets[n] = n * dim_;
  packed_.emplace_back(ops_.packed_size(dim_, size_));
  ops_.pack(entries, row_offsets.data(), col_offsets.data(), -2.0f, dim_, size_, packed_.back().data());
  Codebook book = {entries, packed_.back().data(), norms, size_, dim_, tame, nullptr, static_cast<float>(longest * (1 + 0x1p-20))};
  if (const int64_t words = ops_.rounded_size(book)) {
    rounded_.emplace_back(words);
    ops_.round_entries(book, rounded_.back().data());
    book.rounded = rounded_.back().data();
  }
  levels_.push_back(book);
}

void encodec_codebooks::search(const encodec_clips& x, int64_t batch, int64_t levels, int threads, int64_t* const* codes,
                               const int64_t* code_strides) const {
  each_frames(x.lengths, batch, threads, [&](int64_t b, int64_t first, int64_t frames) {
    std::vector<float> residual(frames * dim_);
    Floats scratch(ops_.search_scratch(size_, dim_));
    copy_rows({x.data[b] + first, 1, x.strides[b]}, {residual.data(), dim_, 1}, frames, dim_);
    ops_.search(levels_.data(), levels, residual.data(), frames, codes[b] + first, code_strides[b], scratch.data());
  });
}

bool encodec_codebooks::lookup(const int64_t* const* codes, const int64_t* code_strides, int64_t batch, int64_t levels, int threads,
                               const encodec_clips& y) const {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t k = 0; k < levels; ++k)
      for (int64_t f = 0; f < y.lengths[b]; ++f) {
        const int64_t code = codes[b][k * code_strides[b] + f];
        if (code < 0 || code >= size_) return false;
      }
  each_frames(y.lengths, batch, threads, [&](int64_t b, int64_t first, int64_t frames) {
    std::vector<float> sums(frames * dim_, 0.0f);
    for (int64_t k = 0; k < levels; ++k)
      for (int64_t f = 0; f < frames; ++f) {
        const float* entry = levels_[k].entries + codes[b][k * code_strides[b] + first + f] * dim_;
        for (int64_t d = 0; d < dim_; ++d) sums[f * dim_ + d] += entry[d];
      }
    copy_rows({sums.data(), dim_, 1}, {y.data[b] + first, 1, y.strides[b]}, frames, dim_);
  });
  return true;
}
