#include "net/stages.h"

#include <cmath>
#include <numeric>

#include "net/cuts.h"
#include "runtime/threads.h"

namespace encodec {
namespace {

// As Cut::kBlock, of a layer with a norm: its sums go by blocks, whose size is part of the arithmetic there.
constexpr int64_t kNormBlockFloats = 1 << 14;
// Blocks are whole register tiles of every tier.
constexpr int64_t kBlockWindows = 48;

std::vector<float> copy_or_zeros(const float* values, int64_t count) {
  return values ? std::vector<float>(values, values + count) : std::vector<float>(count, 0.0f);
}

Norm read_norm(const encodec_conv& conv) {
  Norm norm;
  if (conv.norm_weight) {
    norm.weight = copy_or_zeros(conv.norm_weight, conv.out_channels);
    norm.bias = copy_or_zeros(conv.norm_bias, conv.out_channels);
    norm.eps = conv.norm_eps;
  }
  return norm;
}

Window conv_window(const encodec_conv& conv) {
  return {conv.in_channels, (conv.kernel - 1) * conv.dilation + 1,   conv.stride, conv.pad_left,
          conv.pad_right,   static_cast<PadMode>(conv.pad_mode), true};
}

// Shares that the rest of a loop over blocks is cut into for each thread: even out what they take, at a microsecond each.
constexpr int64_t kSharesPerThread = 4;

// Calls body(block, workspace of the thread that it runs on) for blocks 0 ... blocks - 1, in any order, on this thread and idle ones.
template <class Body>
void each_block(int threads, int64_t blocks, const Body& body) {
  int64_t done = 0;
  while (done < blocks && !has_idle_thread(threads)) body(done++, own_workspace());
  const int64_t left = blocks - done, shares = std::min(left, kSharesPerThread * threads);
  parallel_for(threads, shares, [&](int64_t share) {
    for (int64_t i = left * share / shares; i < left * (share + 1) / shares; ++i) body(done + i, own_workspace());
  });
}

// Calls body(first row, rows) for rows of `channels`, on this thread and idle ones.
template <class Body>
void each_rows(int threads, int64_t rows, int64_t channels, const Body& body) {
  const int64_t most = std::max<int64_t>(1, bound_of(Cut::kBlock) / channels);
  each_block(threads, (rows + most - 1) / most, [&](int64_t block, Workspace&) {
    body(block * most, std::min(most, rows - block * most));
  });
}

}  // namespace

Workspace& own_workspace() {
  thread_local Workspace workspace;
  return workspace;
}

void NormSums::add(const Ops& ops, int64_t block, const float* rows, int64_t count) {
  const int64_t channels = norm_.channels();
  rows_[block] = count;
  std::copy_n(rows, channels, &first_rows_[block * channels]);
  ops.moments(rows, count, channels, rows, &sums_[block * 2 * channels]);
}

FittedNorm NormSums::fit() const {
  const int64_t channels = norm_.channels();
  const auto steps = static_cast<double>(std::accumulate(rows_.begin(), rows_.end(), int64_t{0}));
  const double count = steps * static_cast<double>(channels);
  // The mean over all elements of term(rows, first row, sum, sum of squares), called for each channel of each block.
  std::vector<double> totals(channels);
  const auto mean_of = [&](const auto& term) {
    std::fill(totals.begin(), totals.end(), 0.0);
    for (size_t block = 0; block < rows_.size(); ++block) {
      const auto rows = static_cast<double>(rows_[block]);
      const float* const first = &first_rows_[block * channels];
      const double* const sums = &sums_[block * 2 * channels];
      for (int64_t c = 0; c < channels; ++c) totals[c] += term(rows, first[c], sums[c], sums[channels + c]);
    }
    return std::accumulate(totals.begin(), totals.end(), 0.0) / count;
  };
  const double mean = mean_of([](double rows, double first, double sum, double) { return sum + rows * first; });
  const double variance = mean_of([&](double rows, double first, double sum, double squares) {
    const double offset = first - mean;
    return squares + offset * (2 * sum + rows * offset);
  });
  // a rounding below zero is no variance; NaN stays
  const double scale = 1.0 / std::sqrt((variance < 0 ? 0 : variance) + norm_.eps);
  FittedNorm fitted;
  fitted.mean = static_cast<float>(mean);
  const double rest = mean - fitted.mean;
  for (int64_t c = 0; c < channels; ++c) {
    fitted.scale.push_back(static_cast<float>(norm_.weight[c] * scale));
    fitted.shift.push_back(static_cast<float>(norm_.bias[c] - rest * (norm_.weight[c] * scale)));
  }
  return fitted;
}

Layer Layer::convolution(const Ops& ops, const encodec_conv& conv) {
  Layer layer;
  layer.in = conv.in_channels;
  layer.cols = conv.out_channels;
  layer.norm = read_norm(conv);
  layer.taps_ = conv.kernel;
  layer.stride_ = conv.stride;
  layer.dilation_ = conv.dilation;
  layer.activation_ = static_cast<Activation>(conv.activation);
  // fewer outputs than lanes: one product gives each tap's share of every row, and the shares are then summed
  layer.narrow_ = conv.out_channels <= 2 && conv.stride == 1 && conv.kernel > 1;
  layer.bias_ = copy_or_zeros(conv.bias, conv.out_channels);
  std::vector<int64_t> row_offsets, col_offsets;
  for (int64_t tap = 0; tap < conv.kernel; ++tap) {
    for (int64_t c = 0; c < conv.in_channels && !(layer.narrow_ && tap > 0); ++c)
      row_offsets.push_back(c * conv.kernel + tap);
    for (int64_t n = 0; n < conv.out_channels && (layer.narrow_ || tap == 0); ++n)
      col_offsets.push_back(n * conv.in_channels * conv.kernel + tap);
  }
  // whole vectors of every tier: the shares beyond the last tap are never read
  while (layer.narrow_ && col_offsets.size() % kCacheLine != 0) col_offsets.push_back(0);
  layer.pack(ops, conv.weight, row_offsets, col_offsets);
  return layer;
}

Layer Layer::transposed(const Ops& ops, const encodec_conv& conv) {
  Layer layer;
  layer.in = conv.in_channels;
  layer.cols = conv.stride * conv.out_channels;
  layer.norm = read_norm(conv);
  layer.taps_ = conv.kernel / conv.stride;
  layer.stride_ = layer.dilation_ = 1;
  layer.activation_ = static_cast<Activation>(conv.activation);
  const std::vector<float> bias = copy_or_zeros(conv.bias, conv.out_channels);
  std::vector<int64_t> row_offsets, col_offsets;
  for (int64_t tap = layer.taps_ - 1; tap >= 0; --tap)
    for (int64_t c = 0; c < conv.in_channels; ++c)
      row_offsets.push_back(c * conv.out_channels * conv.kernel + tap * conv.stride);
  for (int64_t j = 0; j < conv.stride; ++j)
    for (int64_t n = 0; n < conv.out_channels; ++n) {
      col_offsets.push_back(n * conv.kernel + j);
      layer.bias_.push_back(bias[n]);
    }
  layer.pack(ops, conv.weight, row_offsets, col_offsets);
  return layer;
}

void Layer::pack(const Ops& ops, const float* weight, const std::vector<int64_t>& row_offsets,
                 const std::vector<int64_t>& col_offsets) {
  const auto depth = static_cast<int64_t>(row_offsets.size()), width = static_cast<int64_t>(col_offsets.size());
  if (!narrow_ && dilation_ == 1 && (taps_ == 2 * stride_ || taps_ == 3 * stride_)) {
    winograd_ = Winograd(ops, weight, row_offsets, col_offsets, taps_ / stride_, static_cast<bool>(norm));
    return;
  }
  weight_ = Floats(ops.packed_size(depth, width));
  ops.pack(weight, row_offsets.data(), col_offsets.data(), 1.0f, depth, width, weight_.data());
}

int64_t Layer::block() const {
  const int64_t least = kBlockWindows / 2 * winograd_.group(), floats = norm ? kNormBlockFloats : bound_of(Cut::kBlock);
  return std::max<int64_t>(1, floats / (stride_ * in * least)) * least;
}

void Layer::run(const Ops& ops, const float* rows, int64_t index, int64_t windows, float* out, Buffer& scratch) const {
  for (int64_t first = 0, count; first < windows; first += count) {
    count = std::min(block() - (index + first) % winograd_.group(), windows - first);
    run_block(ops, rows + first * stride_ * in, index + first, count, out + first * cols, scratch);
  }
}

FittedNorm Layer::run_for_norm(const Ops& ops, const float* rows, int64_t windows, float* out, int threads,
                               const FittedNorm* before) const {
  NormSums sums(norm, blocks(windows));
  each_block(threads, blocks(windows), [&](int64_t b, Workspace& workspace) {
    const int64_t first = b * block(), count = std::min(block(), windows - first);
    float* const results = out + first * cols;
    run_block(ops, rows + first * stride_ * in, first, count, results, workspace.scratch, before);
    // a transposed convolution's row of `cols` is several rows of the norm's channels
    sums.add(ops, b, results, count * (cols / norm.channels()));
  });
  return sums.fit();
}

void Layer::run_block(const Ops& ops, const float* rows, int64_t index, int64_t windows, float* out, Buffer& scratch,
                      const FittedNorm* before) const {
  if (narrow_) return run_narrow(ops, rows, windows, out, scratch);
  const int64_t frame = stride_ * in, count = ((windows - 1) * stride_ + receptive_field()) * in;
  if (winograd_) {
    const int64_t mapped = before ? count : 0;
    float* const left = scratch.reserve(mapped + winograd_.scratch(windows));
    if (before) ops.affine(rows, left, count / in, before->affine(), activation_);
    const Activation rest = before ? Activation::kNone : activation_;
    return winograd_.run(ops, before ? left : rows, rest, index, windows, bias_.data(), out, left + mapped);
  }
  const bool copies = before || activation_ != Activation::kNone;
  const int64_t frame_stride = copies ? padded_stride(frame) : frame, step = frame_stride == frame ? count : frame;
  if (copies) {
    float* const left = scratch.reserve((count + frame - 1) / frame * frame_stride);
    for (int64_t first = 0; first < count; first += step) {
      const int64_t now = std::min(step, count - first);
      float* const target = left + first / frame * frame_stride;
      if (before)
        ops.affine(rows + first, target, now / in, before->affine(), activation_);
      else
        ops.activate(activation_, rows + first, target, now);
    }
    rows = left;
  }
  std::vector<Segment> segments;
  for (int64_t tap = 0; tap < taps_; ++tap) {
    const int64_t row = tap * dilation_;
    const float* data = rows + row / stride_ * frame_stride + row % stride_ * in;
    if (!segments.empty() && segments.back().data + segments.back().length == data)
      segments.back().length += in;
    else
      segments.push_back({data, frame_stride, in});
  }
  ops.product({segments.data(), static_cast<int64_t>(segments.size()), weight_.data(), bias_.data(), nullptr, 0, out, cols,
               windows, cols, taps_ * in});
}

void Layer::run_narrow(const Ops& ops, const float* rows, int64_t windows, float* out, Buffer& scratch) const {
  const int64_t count = windows - 1 + receptive_field(), shares = (taps_ * cols + kCacheLine - 1) / kCacheLine * kCacheLine;
  float* left = scratch.reserve(count * (in + shares));
  float* share = left + count * in;
  const bool copies = activation_ != Activation::kNone;
  if (copies) ops.activate(activation_, rows, left, count * in);
  const std::vector<float> zeros(shares, 0.0f);
  const Segment segment = {copies ? left : rows, in, in};
  ops.product({&segment, 1, weight_.data(), zeros.data(), nullptr, 0, share, shares, count, shares, in});
  for (int64_t t = 0; t < windows; ++t)
    for (int64_t n = 0; n < cols; ++n) {
      float sum = bias_[n];
      for (int64_t tap = 0; tap < taps_; ++tap) sum += share[(t + tap * dilation_) * shares + tap * cols + n];
      out[t * cols + n] = sum;
    }
}

namespace {

class ConvStage : public Stage {
 public:
  explicit ConvStage(Layer layer) : layer_(std::move(layer)) {}
  bool normed() const override { return static_cast<bool>(layer_.norm); }
  void run(const Ops& ops, const StageCall& call) const override {
    if (!layer_.norm) return layer_.run(ops, call.rows, call.index, call.windows, call.out, call.workspace.scratch);
    FittedNorm fitted = layer_.run_for_norm(ops, call.rows, call.windows, call.out, call.threads);
    if (call.after) {
      *call.after = std::move(fitted);
      return;
    }
    each_rows(call.threads, call.windows * rows_per_window, out_channels, [&](int64_t first, int64_t count) {
      float* const rows = call.out + first * out_channels;
      ops.affine(rows, rows, count, fitted.affine(), Activation::kNone);
    });
  }

 private:
  Layer layer_;
};

// shortcut(x) + conv2(conv1(x)), both 1x1 products as one, of the rows [x, activation(hidden)].
class ResidualStage : public Stage {
 public:
  ResidualStage(const Ops& ops, const encodec_conv& conv1, const encodec_conv& conv2, const encodec_conv* shortcut)
      : conv1_(Layer::convolution(ops, conv1)), activation_(static_cast<Activation>(conv2.activation)), has_shortcut_(shortcut != nullptr) {
    const int64_t hidden = conv2.in_channels, in = shortcut ? shortcut->in_channels : 0;
    depth_ = in + hidden;
    bias_ = copy_or_zeros(conv2.bias, conv2.out_channels);
    std::vector<float> dense;
    for (int64_t n = 0; n < conv2.out_channels; ++n) {
      if (shortcut) dense.insert(dense.end(), shortcut->weight + n * in, shortcut->weight + (n + 1) * in);
      dense.insert(dense.end(), conv2.weight + n * hidden, conv2.weight + (n + 1) * hidden);
      if (shortcut && shortcut->bias) bias_[n] += shortcut->bias[n];
    }
    std::vector<int64_t> row_offsets(depth_), col_offsets(conv2.out_channels);
    for (int64_t k = 0; k < depth_; ++k) row_offsets[k] = k;
    for (int64_t n = 0; n < conv2.out_channels; ++n) col_offsets[n] = n * depth_;
    weight_ = Floats(ops.packed_size(depth_, conv2.out_channels));
    ops.pack(dense.data(), row_offsets.data(), col_offsets.data(), 1.0f, depth_, conv2.out_channels, weight_.data());
  }

  bool normed() const override { return false; }

  void run(const Ops& ops, const StageCall& call) const override {
    const int64_t in = conv1_.in, width = conv1_.cols;
    for (int64_t first = 0; first < call.windows; first += conv1_.block()) {
      const int64_t count = std::min(conv1_.block(), call.windows - first);
      float* hidden = call.workspace.hidden.reserve(count * width);
      conv1_.run(ops, call.rows + first * in, call.index + first, count, hidden, call.workspace.scratch);
      ops.activate(activation_, hidden, hidden, count * width);
      const float* x = call.rows + (window.pad_left + first) * in;
      const Segment segments[] = {{x, in, in}, {hidden, width, width}};
      ops.product({has_shortcut_ ? segments : segments + 1, has_shortcut_ ? 2 : 1, weight_.data(), bias_.data(),
                   has_shortcut_ ? nullptr : x, in, call.out + first * out_channels, out_channels, count, out_channels,
                   depth_});
    }
  }

 private:
  Layer conv1_;
  Activation activation_;
  bool has_shortcut_;
  int64_t depth_;
  Floats weight_;
  std::vector<float> bias_;
};

// The same where a group norm follows each convolution: every one of them needs the whole clip first.
class NormedResidualStage : public Stage {
 public:
  NormedResidualStage(const Ops& ops, const encodec_conv& conv1, const encodec_conv& conv2,
                      const encodec_conv* shortcut)
      : conv1_(Layer::convolution(ops, conv1)), conv2_(Layer::convolution(ops, conv2)) {
    if (shortcut) shortcut_ = std::make_unique<Layer>(Layer::convolution(ops, *shortcut));
  }

  bool normed() const override { return true; }
  bool takes_norm() const override { return true; }

  void run(const Ops& ops, const StageCall& call) const override {
    const int64_t in = conv1_.in, windows = call.windows;
    const FittedNorm* const before = call.before;
    const float* other = call.rows + window.pad_left * in;
    float* const hidden = call.workspace.hidden.reserve(windows * conv1_.cols);
    float* const residual = shortcut_ ? call.workspace.shortcut.reserve(windows * out_channels) : nullptr;
    const int64_t blocks = conv1_.blocks(windows);
    const Norm none;
    NormSums hidden_sums(conv1_.norm, blocks), residual_sums(shortcut_ ? shortcut_->norm : none, blocks);
    // both layers that read the clip's rows go through it together: each row comes out of the last-level cache once
    each_block(call.threads, blocks, [&](int64_t b, Workspace& own) {
      const int64_t first = b * conv1_.block(), count = std::min(conv1_.block(), windows - first), needed = count + conv1_.receptive_field() - 1;
      const float* block = call.rows + first * in;
      if (before) {
        float* const normed = own.normed.reserve(needed * in);
        ops.affine(block, normed, needed, before->affine(), Activation::kNone);
        block = normed;
      }
      conv1_.run_block(ops, block, first, count, hidden + first * conv1_.cols, own.scratch);
      hidden_sums.add(ops, b, hidden + first * conv1_.cols, count);
      if (!shortcut_) return;
      shortcut_->run_block(ops, block + window.pad_left * in, first, count, residual + first * out_channels, own.scratch);
      residual_sums.add(ops, b, residual + first * out_channels, count);
    });
    const FittedNorm hidden_norm = hidden_sums.fit();
    const FittedNorm out_norm = conv2_.run_for_norm(ops, hidden, windows, call.out, call.threads, &hidden_norm);
    const FittedNorm fitted = shortcut_ ? residual_sums.fit() : FittedNorm();
    const Affine other_map = shortcut_ ? fitted.affine() : before ? before->affine() : Affine();
    each_rows(call.threads, windows, out_channels, [&](int64_t first, int64_t count) {
      const float* const addend = (shortcut_ ? residual : other) + first * out_channels;
      ops.affine_sum(call.out + first * out_channels, out_norm.affine(), addend, shortcut_ || before ? &other_map : nullptr, count);
    });
  }

 private:
  Layer conv1_, conv2_;
  std::unique_ptr<Layer> shortcut_;
};

}  // namespace

std::unique_ptr<Stage> make_conv(const Ops& ops, const encodec_conv& conv) {
  auto stage = std::make_unique<ConvStage>(Layer::convolution(ops, conv));
  stage->window = conv_window(conv);
  stage->out_channels = conv.out_channels;
  return stage;
}

std::unique_ptr<Stage> make_residual(const Ops& ops, const encodec_conv& conv1, const encodec_conv& conv2,
                                     const encodec_conv* shortcut) {
  const bool normed = conv1.norm_weight != nullptr;
  std::unique_ptr<Stage> stage;
  if (normed)
    stage = std::make_unique<NormedResidualStage>(ops, conv1, conv2, shortcut);
  else
    stage = std::make_unique<ResidualStage>(ops, conv1, conv2, shortcut);
  stage->window = conv_window(conv1);
  stage->out_channels = conv2.out_channels;
  return stage;
}

std::unique_ptr<Stage> make_upsample(const Ops& ops, const encodec_conv& conv) {
  const int64_t taps = conv.kernel / conv.stride;
  auto stage = std::make_unique<ConvStage>(Layer::transposed(ops, conv));
  stage->window = {conv.in_channels, taps, 1, taps - 1, taps - 1, PadMode::kConstant, false};
  stage->out_channels = conv.out_channels;
  stage->rows_per_window = conv.stride;
  stage->trim_left = conv.pad_left;
  stage->trim_right = conv.pad_right;
  return stage;
}

}  // namespace encodec
