// Stages without recurrence, and chains of them that run a clip tile by tile.
#pragma once

#include <memory>
#include <vector>

#include "api/engine.h"
#include "runtime/memory.h"
#include "simd/ops.h"
#include "net/window.h"
#include "net/winograd.h"

namespace encodec {

// What one thread works in.
struct Workspace {
  Buffer rows[2], hidden, shortcut;  // of a task, whose blocks may go to other threads
  Buffer scratch, normed;            // of a block

  int64_t floats() const {
    int64_t sum = 0;
    for (const Buffer* buffer : {&rows[0], &rows[1], &scratch, &hidden, &shortcut, &normed}) sum += buffer->capacity();
    return sum;
  }
};

// This thread's.
Workspace& own_workspace();

// A group norm that has seen its clip: (x - mean) * scale + shift. The mean comes off first. Of nearly constant values little is left,
// which the scale blows up; x * scale + shift would blow up the rounding of x * scale instead.
struct FittedNorm {
  float mean = 0;
  std::vector<float> scale, shift;

  explicit operator bool() const { return !scale.empty(); }
  Affine affine() const { return {static_cast<int64_t>(scale.size()), mean, scale.data(), shift.data()}; }
};

// A group norm over all channels and all time of a clip.
struct Norm {
  std::vector<float> weight, bias;
  double eps = 0;

  explicit operator bool() const { return !weight.empty(); }
  int64_t channels() const { return static_cast<int64_t>(weight.size()); }
};

// A norm that is seeing its clip, block by block in any order: each block has its own sums, which are added up at the end.
class NormSums {
 public:
  NormSums(const Norm& norm, int64_t blocks)
      : norm_(norm), rows_(blocks), first_rows_(blocks * norm.channels()), sums_(blocks * 2 * norm.channels()) {}
  // The `count` rows of a block, which lie at `rows`; once for each block.
  void add(const Ops& ops, int64_t block, const float* rows, int64_t count);
  FittedNorm fit() const;

 private:
  const Norm& norm_;
  std::vector<int64_t> rows_;
  // [blocks, channels], which come off a block's rows: squares of nearly constant channels would cancel to nothing.
  std::vector<float> first_rows_;
  std::vector<double> sums_;  // [blocks, 2, channels]: of what is left, and of its squares
};

// One convolution's packed weights and how its windows read rows [T, in].
class Layer {
 public:
  // The layer of a convolution, and that of a transposed one: its two-tap (kernel / stride taps) frame form, with
  // stride * out columns.
  static Layer convolution(const Ops& ops, const encodec_conv& conv);
  static Layer transposed(const Ops& ops, const encodec_conv& conv);

  int64_t receptive_field() const { return (taps_ - 1) * dilation_ + 1; }
  // out [windows, cols]; rows: the first window's first row; index: which window of the clip it is.
  void run(const Ops& ops, const float* rows, int64_t index, int64_t windows, float* out, Buffer& scratch) const;
  // As `run`, of a whole clip, on idle threads too; returns the norm over the output, which is still to be applied. The rows are put
  // through `before`, if that is given, ahead of their activation.
  FittedNorm run_for_norm(const Ops& ops, const float* rows, int64_t windows, float* out, int threads,
                          const FittedNorm* before = nullptr) const;
  // As `run`, all at once.
  void run_block(const Ops& ops, const float* rows, int64_t index, int64_t windows, float* out, Buffer& scratch,
                 const FittedNorm* before = nullptr) const;
  // Windows of a convenient block for `run` in pieces; whole groups of Winograd's.
  int64_t block() const;
  // Such blocks, the last one perhaps shorter.
  int64_t blocks(int64_t windows) const { return (windows + block() - 1) / block(); }

  int64_t in, cols;
  Norm norm;

 private:
  void pack(const Ops& ops, const float* weight, const std::vector<int64_t>& row_offsets,
            const std::vector<int64_t>& col_offsets);
  void run_narrow(const Ops& ops, const float* rows, int64_t windows, float* out, Buffer& scratch) const;

  int64_t taps_, stride_, dilation_;
  Activation activation_ = Activation::kNone;
  bool narrow_ = false;
  Floats weight_;
  Winograd winograd_;  // instead of weight_, where windows are two or three frames
  std::vector<float> bias_;
};

// Consecutive windows of a clip, and where their outputs go.
struct StageCall {
  const float* rows;  // the first window's first row
  int64_t index;      // of the first window in its clip
  int64_t windows;
  float* out;  // [windows * rows_per_window, out_channels]
  Workspace& workspace;
  int threads;               // that may share the work of a whole clip, this one among them
  const FittedNorm* before;  // a norm that the rows have yet to go through, only where takes_norm(), or null
  FittedNorm* after;         // where to leave the norm of the output, which is then not applied, or null
};

class Stage {
 public:
  virtual ~Stage() = default;
  virtual void run(const Ops& ops, const StageCall& call) const = 0;
  virtual bool normed() const = 0;
  virtual bool takes_norm() const { return false; }

  Window window;
  int64_t out_channels = 0;
  int64_t rows_per_window = 1;
  int64_t trim_left = 0, trim_right = 0;
};

std::unique_ptr<Stage> make_conv(const Ops& ops, const encodec_conv& conv);
std::unique_ptr<Stage> make_residual(const Ops& ops, const encodec_conv& conv1, const encodec_conv& conv2,
                                     const encodec_conv* shortcut);
std::unique_ptr<Stage> make_upsample(const Ops& ops, const encodec_conv& conv);

// A clip's place in one stage.
struct StageState {
  Progress progress;
  std::vector<float> kept;  // rows [begin, end)
};

using ChainState = std::vector<StageState>;

std::vector<Progress> progress_of(const ChainState& state);

// Rows in either layout: step t, channel c at data[t * row_stride + c * channel_stride].
struct Rows {
  float* data;
  int64_t row_stride, channel_stride;

  Rows from(int64_t row) const { return {data + row * row_stride, row_stride, channel_stride}; }
};

void copy_rows(Rows from, Rows to, int64_t rows, int64_t channels);

// Consecutive stages.
class Chain {
 public:
  void append(std::unique_ptr<Stage> stage) { stages_.push_back(std::move(stage)); }
  int64_t in_channels() const { return stages_.front()->window.channels; }
  int64_t out_channels() const { return stages_.back()->out_channels; }
  bool normed() const;
  ChainState open() const { return ChainState(stages_.size()); }
  const Window& window(size_t stage) const { return stages_[stage]->window; }

  // Outputs that `added` more steps complete; `progress` moves on.
  int64_t advance(std::vector<Progress>& progress, int64_t added, bool final) const;
  // Output steps per input step, as a fraction.
  void rate(int64_t& up, int64_t& down) const;
  // Input steps that a run takes at a time.
  int64_t tile() const;
  // Input steps before which the start of a piece that begins with output `index` must lie.
  int64_t reach(int64_t index) const;
  // The state at input step `start` in the middle of a clip, wrong for all outputs that reach before it; `output` is the index of
  // the first one. False if no stage boundary falls there.
  bool middle(int64_t start, ChainState& state, int64_t& output) const;

  // Runs `count` steps of x. Outputs from the `skip`-th on go to y. threads: as for Stage::run.
  void run(const Ops& ops, ChainState& state, Rows x, int64_t count, bool final, Rows y, int64_t skip,
           Workspace& workspace, int threads) const;

 private:
  int64_t run_tile(const Ops& ops, ChainState& state, Rows x, int64_t count, bool final, const float*& out,
                   Workspace& workspace, int threads) const;

  std::vector<std::unique_ptr<Stage>> stages_;
};

}  // namespace encodec
