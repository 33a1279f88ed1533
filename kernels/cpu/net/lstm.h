// x + lstm(x) over a batch of clips of any lengths, block of steps by block of steps.
#pragma once

#include <vector>

#include "runtime/memory.h"
#include "simd/ops.h"
#include "net/stages.h"

namespace encodec {

// A clip's h and c of every layer: [layers, 2, hidden].
using LstmState = std::vector<float>;

class Lstm {
 public:
  Lstm(const Ops& ops, int64_t hidden, int64_t layers, const float* const* weights);
  int64_t hidden() const { return hidden_; }
  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  LstmState open() const { return LstmState(2 * hidden_ * layers_.size(), 0.0f); }

 private:
  friend class LstmBlock;
  struct Layer {
    Floats input, recurrent;
    std::vector<float> bias;
  };

  int64_t hidden_;
  std::vector<Layer> layers_;
};

// A clip's steps in one block.
struct LstmClip {
  LstmState* state;
  Rows x, y;
  int64_t steps;
};

// Consecutive steps of clips that share each step's product with the recurrent weights. Layer 0 reads x and the last one writes y; a
// layer comes after the one below it and after the same layer of the clips' block before. Different layers touch different memory.
class LstmBlock {
 public:
  // Steps that a block of so many clips should have.
  static int64_t steps(int64_t clips);

  // clips: longest first, all with steps.
  LstmBlock(const Lstm& lstm, std::vector<LstmClip> clips);
  void run_layer(const Ops& ops, int64_t layer, Workspace& workspace);

 private:
  int64_t count() const { return static_cast<int64_t>(clips_.size()); }
  void read_inputs();
  void write_outputs(const Ops& ops, float* row_sums);

  const Lstm& lstm_;
  std::vector<LstmClip> clips_;
  std::vector<int64_t> starts_;  // the sequence's row at which each step begins
  Buffer sequence_;              // step by step: [steps, clips running, hidden]
};

}  // namespace encodec
