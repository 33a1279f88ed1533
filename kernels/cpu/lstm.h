// x + lstm(x) over a batch of clips of any lengths.
#pragma once

#include <vector>

#include "memory.h"
#include "ops.h"

namespace encodec {

// A clip's h and c of every layer: [layers, 2, hidden].
using LstmState = std::vector<float>;

struct LstmClip {
  LstmState* state;
  const float* x;  // [steps, hidden]
  float* y;        // [steps, hidden], not x
  int64_t steps;
};

class Lstm {
 public:
  Lstm(const Ops& ops, int64_t hidden, int64_t layers, const float* const* weights);
  int64_t hidden() const { return hidden_; }
  LstmState open() const { return LstmState(2 * hidden_ * layers_.size(), 0.0f); }
  // The clips share each step's product with the recurrent weights. Layers run behind one another on threads of their own.
  void run(const Ops& ops, std::vector<LstmClip> clips, int threads) const;

 private:
  struct Layer {
    Floats input, recurrent;
    std::vector<float> bias;
  };
  class Group;

  int64_t hidden_;
  std::vector<Layer> layers_;
};

}  // namespace encodec
