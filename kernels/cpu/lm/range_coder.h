// The range coder: whole numbers alone, so that every machine writes and reads the same bytes.
//
// A symbol is the part [start, start + frequency) of [0, total), total <= 2^40. encodec_fast/compression/range_coder.py is its twin.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace encodec {

struct Interval {
  uint64_t start, frequency, total;
};

// Below this the range is widened by a byte: a symbol's step keeps 16 bits or more.
constexpr uint64_t kLeastRange = uint64_t{1} << 56;

class RangeEncoder {
 public:
  void encode(const Interval& symbol) {
    const uint64_t step = range / symbol.total;
    add(step * symbol.start);
    range = step * symbol.frequency;
    while (range < kLeastRange) {
      bytes.push_back(static_cast<uint8_t>(low >> 56));
      low <<= 8;
      range <<= 8;
    }
  }

  // The shortest ending: of the numbers in the range that end in the most zero bytes, the smallest. The zeros are left out.
  void finish() {
    for (int zeros = 8; zeros >= 0; --zeros) {
      const uint64_t mask = zeros == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * zeros)) - 1;
      const uint64_t up = (~low + 1) & mask;  // from low to the next multiple
      if (up >= range) continue;
      add(up);
      break;
    }
    for (; low; low <<= 8) bytes.push_back(static_cast<uint8_t>(low >> 56));
    while (!bytes.empty() && bytes.back() == 0) bytes.pop_back();
    range = 0;
  }

  // Bytes at the front that no later symbol changes: not those that a carry reaches, nor zeros, which the end may leave out.
  int64_t settled() const {
    if (range == 0) return static_cast<int64_t>(bytes.size());
    auto size = static_cast<int64_t>(bytes.size());
    while (size > 0 && bytes[size - 1] == 0xff) --size;
    if (size > 0) --size;
    while (size > 0 && bytes[size - 1] == 0) --size;
    return size;
  }

  uint64_t low = 0, range = ~uint64_t{0};
  std::vector<uint8_t> bytes;  // but those that were taken away

 private:
  void add(uint64_t value) {
    low += value;
    if (low >= value) return;
    // the beginning is met by a forged state alone
    for (auto last = bytes.end(); last != bytes.begin() && ++*--last == 0;) {
    }
  }
};

class RangeDecoder {
 public:
  RangeDecoder() = default;
  explicit RangeDecoder(std::vector<uint8_t> bytes) : payload(std::move(bytes)) {
    for (int i = 0; i < 8; ++i) code = code << 8 | next();
  }

  // Where in [0, total) the symbol lies that comes next.
  uint64_t target(uint64_t total) const { return std::min(code / (range / total), total - 1); }
  // Goes on behind the symbol, which holds the target.
  void consume(const Interval& symbol) {
    const uint64_t step = range / symbol.total;
    code -= step * symbol.start;
    range = step * symbol.frequency;
    while (range < kLeastRange) {
      code = code << 8 | next();
      range <<= 8;
    }
  }
  // Whether no byte is left that was not read.
  bool used_up() const { return offset >= static_cast<int64_t>(payload.size()); }

  uint64_t code = 0, range = ~uint64_t{0};
  std::vector<uint8_t> payload;
  int64_t offset = 0;

 private:
  uint8_t next() {
    const uint8_t byte = used_up() ? 0 : payload[offset];
    ++offset;
    return byte;
  }
};

}  // namespace encodec
