// Convolutions whose windows are two or three whole frames, by Winograd's minimal filtering: fewer products than terms.
//
// Window w is sum_j x[w + j] G[j], x[w] a frame of a stride's rows. Windows go in pairs, 2p and 2p + 1, which share work:
//   two frames, F(2, 2), three products for four:
//     y[2p] = x[2p+1] (G0 + G1) + (x[2p] - x[2p+1]) G0,   y[2p+1] = x[2p+1] (G0 + G1) - (x[2p+1] - x[2p+2]) G1
//   three frames, F(2, 3), four products for six:
//     s = (x[2p+1] + x[2p+2]) (G0 + G1 + G2)/2,   t = (x[2p+2] - x[2p+1]) (G0 - G1 + G2)/2
//     y[2p] = s + t + (x[2p] - x[2p+2]) G0,   y[2p+1] = s - t - (x[2p+1] - x[2p+3]) G2
// Source: S. Winograd, Arithmetic Complexity of Computations, SIAM 1980. Pairs count from the clip's beginning, and each window reads
// its own frames only: its bits do not depend on the piece it comes in.
//
// A clip with a group norm is whole. Its windows of two frames go in threes, F(3, 2), four products for six:
//     s = (x[3p+1] + x[3p+2]) (G0 + G1)/2,   t = (x[3p+2] - x[3p+1]) (G0 - G1)/2
//     y[3p] = s + t + (x[3p] - x[3p+2]) G0,   y[3p+1] = s - t,   y[3p+2] = s + t - (x[3p+1] - x[3p+3]) G1
// There a window also reads a frame that is not its own. With the norm every value depends on the whole clip anyway.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/memory.h"
#include "simd/ops.h"

namespace encodec {

class Winograd {
 public:
  Winograd() = default;
  // Element (k, n) of G0, G1 (and G2) one below the other is weight[row_offsets[k] + col_offsets[n]]. frames: 2 or 3.
  // whole: clips come whole.
  Winograd(const Ops& ops, const float* weight, const std::vector<int64_t>& row_offsets, const std::vector<int64_t>& col_offsets,
           int64_t frames, bool whole);

  explicit operator bool() const { return frames_ > 0; }
  // Windows that share work; 2 also of none.
  int64_t group() const { return frames_ == 2 && whole_ ? 3 : 2; }
  // Floats that `run` works in.
  int64_t scratch(int64_t windows) const;
  // out [windows, cols]; x: the frames of those windows, one after the other; activation: of them, first; index: which window of the clip
  // the first one is, of a whole clip the first of a group; bias: [cols].
  void run(const Ops& ops, const float* x, Activation activation, int64_t index, int64_t windows, const float* bias, float* out, float* scratch) const;

 private:
  // Products of a group.
  int64_t terms() const { return group() == 2 && frames_ == 2 ? 3 : 4; }

  int64_t frames_ = 0, depth_ = 0, cols_ = 0;
  bool whole_ = false;
  Floats first_, last_, sum_, alternating_;  // G0, the last G negated, and what s and t take
  std::vector<float> zeros_;                // a row of either side
};

}  // namespace encodec
