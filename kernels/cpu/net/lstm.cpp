#include "net/lstm.h"

#include <algorithm>
#include <utility>

#include "net/cuts.h"

namespace encodec {

Lstm::Lstm(const Ops& ops, int64_t hidden, int64_t layers, const float* const* weights) : hidden_(hidden) {
  std::vector<int64_t> row_offsets(hidden), col_offsets(4 * hidden);
  for (int64_t k = 0; k < hidden; ++k) row_offsets[k] = k;
  for (int64_t n = 0; n < 4 * hidden; ++n) col_offsets[n] = n * hidden;
  const auto pack = [&](const float* weight) {
    Floats packed(ops.packed_size(hidden, 4 * hidden));
    ops.pack(weight, row_offsets.data(), col_offsets.data(), 1.0f, hidden, 4 * hidden, packed.data());
    return packed;
  };
  for (int64_t l = 0; l < layers; ++l, weights += 4) {
    Layer layer{pack(weights[0]), pack(weights[1]), std::vector<float>(weights[2], weights[2] + 4 * hidden)};
    for (int64_t n = 0; n < 4 * hidden; ++n) layer.bias[n] += weights[3][n];
    layers_.push_back(std::move(layer));
  }
}

int64_t LstmBlock::steps(int64_t clips) {
  return std::max<int64_t>(1, std::min(bound_of(Cut::kLstmSteps), bound_of(Cut::kLstmRows) / clips));
}

LstmBlock::LstmBlock(const Lstm& lstm, std::vector<LstmClip> clips) : lstm_(lstm), clips_(std::move(clips)) {
  const int64_t steps = clips_.front().steps;
  for (int64_t step = 0, running = count(); step <= steps; ++step) {
    starts_.push_back(step == 0 ? 0 : starts_.back() + running);
    while (running > 0 && clips_[running - 1].steps <= step) --running;
  }
}

void LstmBlock::run_layer(const Ops& ops, int64_t layer, Workspace& workspace) {
  const int64_t hidden = lstm_.hidden_, stride = padded_stride(hidden), cols = 4 * hidden, gates_stride = padded_stride(cols);
  const Lstm::Layer& weights = lstm_.layers_[layer];
  if (layer == 0) read_inputs();
  float* const sequence = sequence_.reserve(starts_.back() * hidden);
  float* const h = workspace.hidden.reserve(count() * (stride + hidden));
  float* const c = h + count() * stride;
  for (int64_t i = 0; i < count(); ++i) {
    const float* saved = clips_[i].state->data() + layer * 2 * hidden;
    std::copy_n(saved, hidden, h + i * stride);
    std::copy_n(saved + hidden, hidden, c + i * hidden);
  }

  float* gates = workspace.scratch.reserve(starts_.back() * gates_stride);
  const Segment input = {sequence, hidden, hidden}, recurrent = {h, stride, hidden};
  ops.product({&input, 1, weights.input.data(), weights.bias.data(), nullptr, 0, gates, gates_stride, starts_.back(), cols, hidden});
  float* row = sequence;
  for (size_t step = 0; step + 1 < starts_.size(); ++step) {
    const int64_t running = starts_[step + 1] - starts_[step];
    ops.product({&recurrent, 1, weights.recurrent.data(), nullptr, nullptr, 0, gates, gates_stride, running, cols, hidden});
    for (int64_t i = 0; i < running; ++i, gates += gates_stride, row += hidden) {
      ops.lstm_cell(gates, c + i * hidden, h + i * stride, hidden);
      std::copy_n(h + i * stride, hidden, row);
    }
  }

  for (int64_t i = 0; i < count(); ++i) {
    float* saved = clips_[i].state->data() + layer * 2 * hidden;
    std::copy_n(h + i * stride, hidden, saved);
    std::copy_n(c + i * hidden, hidden, saved + hidden);
  }
  if (layer + 1 == lstm_.layers()) write_outputs(ops, h);
}

void LstmBlock::read_inputs() {
  const int64_t hidden = lstm_.hidden_;
  float* row = sequence_.reserve(starts_.back() * hidden);
  for (size_t step = 0; step + 1 < starts_.size(); ++step)
    for (int64_t i = 0; i < starts_[step + 1] - starts_[step]; ++i, row += hidden)
      copy_rows(clips_[i].x.from(step), {row, hidden, 1}, 1, hidden);
}

// row_sums: [hidden], to work in.
void LstmBlock::write_outputs(const Ops& ops, float* row_sums) {
  const int64_t hidden = lstm_.hidden_;
  const float* row = sequence_.reserve(0);
  for (size_t step = 0; step + 1 < starts_.size(); ++step)
    for (int64_t i = 0; i < starts_[step + 1] - starts_[step]; ++i, row += hidden) {
      copy_rows(clips_[i].x.from(step), {row_sums, hidden, 1}, 1, hidden);
      ops.add(row, row_sums, row_sums, hidden);
      copy_rows({row_sums, hidden, 1}, clips_[i].y.from(step), 1, hidden);
    }
  sequence_ = Buffer();
}

}  // namespace encodec
