#include "lstm.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "threads.h"

namespace encodec {
namespace {

// Rows of one product of the input with its weights: enough to pay for reading these from the last-level cache.
constexpr int64_t kInputRows = 96;
// Steps of it: the layer above starts that much later.
constexpr int64_t kInputSteps = 48;
// Kept between rows of h and of the gates: rows a power of two apart would share a few sets of the first-level cache.
constexpr int64_t kRowGap = 16;

}  // namespace

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

// Clips that step together, longest first, so that the ones still running at a step are the first few.
// Sequences lie step by step: [steps, clips running].
class Lstm::Group {
 public:
  Group(const Lstm& lstm, std::vector<LstmClip> clips) : lstm_(lstm), clips_(std::move(clips)) {
    const int64_t hidden = lstm_.hidden_, steps = clips_.front().steps;
    for (int64_t step = 0, running = count(); step <= steps; ++step) {
      starts_.push_back(step == 0 ? 0 : starts_.back() + running);
      while (running > 0 && clips_[running - 1].steps <= step) --running;
    }
    sequence_.resize(starts_.back() * hidden);
    each_row([&](float* row, const LstmClip& clip, int64_t step) { std::copy_n(clip.x + step * hidden, hidden, row); });
    block_ = std::max<int64_t>(1, std::min(kInputSteps, kInputRows / count()));
    blocks_done_.assign(lstm_.layers_.size(), 0);
    gates_.resize(lstm_.layers_.size() * block_ * count() * (4 * hidden + kRowGap));
    h_.resize(lstm_.layers_.size() * count() * (hidden + kRowGap));
    c_.resize(lstm_.layers_.size() * count() * hidden);
  }

  // Runs one layer over all steps, in place, never ahead of the layer below.
  void run_layer(const Ops& ops, int64_t layer) {
    const int64_t hidden = lstm_.hidden_, stride = hidden + kRowGap, steps = clips_.front().steps;
    float *h = h_.data() + layer * count() * stride, *c = c_.data() + layer * count() * hidden;
    for (int64_t i = 0; i < count(); ++i) {
      const float* saved = clips_[i].state->data() + layer * 2 * hidden;
      std::copy_n(saved, hidden, h + i * stride);
      std::copy_n(saved + hidden, hidden, c + i * hidden);
    }
    for (int64_t first = 0; first < steps; first += block_) {
      if (layer > 0) wait_for(layer - 1, first / block_ + 1);
      run_steps(ops, layer, first, std::min(steps, first + block_), h, c);
      finish_block(layer);
    }
    for (int64_t i = 0; i < count(); ++i) {
      float* saved = clips_[i].state->data() + layer * 2 * hidden;
      std::copy_n(h + i * stride, hidden, saved);
      std::copy_n(c + i * hidden, hidden, saved + hidden);
    }
  }

  void write_outputs(const Ops& ops) {
    const int64_t hidden = lstm_.hidden_;
    each_row([&](float* row, const LstmClip& clip, int64_t step) {
      ops.add(row, clip.x + step * hidden, clip.y + step * hidden, hidden);
    });
  }

 private:
  int64_t count() const { return static_cast<int64_t>(clips_.size()); }

  template <class Function>
  void each_row(const Function& function) {
    for (size_t step = 0; step + 1 < starts_.size(); ++step)
      for (int64_t row = starts_[step]; row < starts_[step + 1]; ++row)
        function(sequence_.data() + row * lstm_.hidden_, clips_[row - starts_[step]], static_cast<int64_t>(step));
  }

  void run_steps(const Ops& ops, int64_t layer, int64_t first, int64_t end, float* h, float* c) {
    const int64_t hidden = lstm_.hidden_, stride = hidden + kRowGap;
    const int64_t cols = 4 * hidden, gates_stride = cols + kRowGap;
    const Layer& weights = lstm_.layers_[layer];
    float* gates = gates_.data() + layer * block_ * count() * gates_stride;
    float* rows = sequence_.data() + starts_[first] * hidden;
    const Segment input = {rows, hidden, hidden}, recurrent = {h, stride, hidden};
    ops.product({&input, 1, weights.input.data(), weights.bias.data(), nullptr, 0, gates, gates_stride,
                 starts_[end] - starts_[first], cols, hidden});
    for (int64_t step = first; step < end; ++step) {
      const int64_t running = starts_[step + 1] - starts_[step];
      ops.product({&recurrent, 1, weights.recurrent.data(), nullptr, nullptr, 0, gates, gates_stride, running, cols,
                   hidden});
      for (int64_t i = 0; i < running; ++i, gates += gates_stride, rows += hidden) {
        ops.lstm_cell(gates, c + i * hidden, h + i * stride, hidden);
        std::copy_n(h + i * stride, hidden, rows);
      }
    }
  }

  void wait_for(int64_t layer, int64_t blocks) {
    std::unique_lock<std::mutex> lock(mutex_);
    moved_.wait(lock, [&] { return blocks_done_[layer] >= blocks; });
  }

  void finish_block(int64_t layer) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ++blocks_done_[layer];
    }
    moved_.notify_all();
  }

  const Lstm& lstm_;
  std::vector<LstmClip> clips_;
  std::vector<int64_t> starts_;  // the sequence's row at which each step begins
  std::vector<float> sequence_, gates_, h_, c_;
  int64_t block_;
  std::mutex mutex_;
  std::condition_variable moved_;
  std::vector<int64_t> blocks_done_;
};

void Lstm::run(const Ops& ops, std::vector<LstmClip> clips, int threads) const {
  clips.erase(std::remove_if(clips.begin(), clips.end(), [](const LstmClip& clip) { return clip.steps == 0; }),
              clips.end());
  if (clips.empty()) return;
  std::stable_sort(clips.begin(), clips.end(),
                   [](const LstmClip& a, const LstmClip& b) { return a.steps > b.steps; });
  const auto layers = static_cast<int64_t>(layers_.size()), count = static_cast<int64_t>(clips.size());
  // threads beyond one a layer take clips of their own, dealt out in turn so that each has long and short ones
  const int64_t group_count = std::min(count, (threads + layers - 1) / layers);
  std::vector<std::unique_ptr<Group>> groups;
  for (int64_t g = 0; g < group_count; ++g) {
    std::vector<LstmClip> members;
    for (int64_t i = g; i < count; i += group_count) members.push_back(clips[i]);
    groups.push_back(std::make_unique<Group>(*this, std::move(members)));
  }
  // a layer's task comes after those of the layer below, for which it waits
  run_tasks(threads, layers * group_count,
            [&](int64_t task) { groups[task % group_count]->run_layer(ops, task / group_count); });
  run_tasks(threads, group_count, [&](int64_t g) { groups[g]->write_outputs(ops); });
}

}  // namespace encodec
