#include "net/cuts.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

namespace encodec {
namespace {

struct Bound {
  const char* name;
  int64_t usual;
};

// In the order of Cut.
constexpr Bound kBounds[] = {
    {"clips", 128},       // that run together: more would gain nothing, and take more memory
    {"piece", 1 << 22},   // floats of the sequences that all clips together bring to an LSTM at once
    {"wave", 48},         // rows at an LSTM of a clip's share of a wave: about a tile of the chains beside it, and whole blocks
    {"task", 4},          // times as long as what it computes twice: a piece that begins in the middle of a clip
    {"lstm_clips", 32},   // of a group: more would not make its products faster
    {"lstm_rows", 96},    // of one product of an LSTM's input: enough to pay for reading its weights from the last-level cache
    {"lstm_steps", 24},   // of a block of an LSTM: the layer above starts that much later
    {"tile", 1 << 19},    // floats of a chain's widest activation: the two that are in use stay in the last-level cache
    {"block", 1 << 14},   // floats of a layer's input rows: with the block's output they stay in the second-level cache
};

// What set_bound asked for, 0 where nothing did.
std::atomic<int64_t> asked[sizeof kBounds / sizeof *kBounds];

// Products of two bounds and a network's widths stay far from overflow.
constexpr int64_t kMost = int64_t{1} << 32;

}  // namespace

int64_t bound_of(Cut cut) {
  const auto index = static_cast<size_t>(cut);
  const int64_t bound = asked[index].load(std::memory_order_relaxed);
  return bound ? bound : kBounds[index].usual;
}

void set_bound(const char* name, int64_t bound) {
  std::string names;
  size_t index = 0;
  for (const Bound& known : kBounds) {
    if (std::strcmp(known.name, name) == 0) {
      if (bound < 0 || bound > kMost) throw std::invalid_argument("the bound of a cut is 1 to " + std::to_string(kMost) + ", or 0 for the usual one");
      asked[index] = bound;
      return;
    }
    names += (index++ ? ", " : "") + std::string(known.name);
  }
  throw std::invalid_argument("there is no cut \"" + std::string(name) + "\": cuts are " + names);
}

}  // namespace encodec
