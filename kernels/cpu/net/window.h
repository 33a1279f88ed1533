// Where a convolution's windows lie in time: padding, and what a clip must keep between two pieces of it.
//
// Rows are counted in padded time: row pad_left is the clip's first step. A buffer holds rows [begin, pad_left + length).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace encodec {

enum class PadMode { kReflect = 0, kConstant = 1, kReplicate = 2 };

struct Progress {
  int64_t length = 0;    // input steps so far
  int64_t next = 0;      // row at which the next window starts
  int64_t begin = 0;     // first row kept
  bool started = false;  // the left padding is in place
  bool ended = false;
};

struct Window {
  int64_t channels, receptive_field, stride, pad_left, pad_right;
  PadMode mode;
  bool whole_steps;  // pad the right end further, up to ceil(length / stride) windows

  // Rows that the right end may reflect or repeat.
  int64_t tail() const { return pad_right + stride; }

  int64_t right_padding(int64_t length) const {
    const int64_t extra = whole_steps ? (length + stride - 1) / stride * stride - length : 0;
    return length == 0 ? 0 : pad_right + extra;
  }

  int64_t held(const Progress& p) const { return p.ended ? 0 : pad_left + p.length - p.begin; }

  // Counts `added` steps, and the end if `final`; returns the windows that are now complete, from p.next on.
  int64_t advance(Progress& p, int64_t added, bool final) const {
    p.length += added;
    const int64_t wanted = mode == PadMode::kReflect ? pad_left + 1 : mode == PadMode::kReplicate ? 1 : 0;
    p.started = p.started || p.length >= wanted || (final && p.length > 0);
    p.ended = final;
    if (!p.started) return 0;
    const int64_t rows = pad_left + p.length + (final ? right_padding(p.length) : 0) - p.next;
    return rows < receptive_field || p.length == 0 ? 0 : (rows - receptive_field) / stride + 1;
  }

  // Moves past `windows` windows; earlier rows than the next window and the tail need not be kept.
  void consume(Progress& p, int64_t windows) const {
    p.next += windows * stride;
    if (p.started) p.begin = std::max(p.begin, std::min(p.next, pad_left + p.length - tail()));
  }

  // A start in the middle of a clip, at input step `length`, a multiple of the stride. The rows before it are not known.
  Progress middle(int64_t length) const {
    Progress p;
    p.length = p.next = length;
    p.started = true;
    p.begin = std::max<int64_t>(0, std::min(p.next, pad_left + length - tail()));
    return p;
  }

  // A step from which the input must be right for window `index` and all after it to be right.
  int64_t reach(int64_t index) const { return index * stride - pad_left - tail(); }

  // Fills the left padding of a clip's first rows. rows: row 0.
  void fill_left(float* rows, int64_t length) const {
    for (int64_t row = 0; row < pad_left; ++row) fill(rows + row * channels, rows, row - pad_left, length, length, 0);
  }

  // Appends the right padding. rows: row `begin`.
  void fill_right(float* rows, const Progress& p) const {
    const int64_t padding = right_padding(p.length);
    // transformers lengthens a clip that is too short to reflect with zeros first
    const int64_t extended = std::max(p.length, std::max(pad_left, padding) + 1);
    for (int64_t step = p.length; step < p.length + padding; ++step)
      fill(rows + (pad_left + step - p.begin) * channels, rows, step, p.length, extended, p.begin);
  }

 private:
  void fill(float* out, const float* rows, int64_t step, int64_t length, int64_t extended, int64_t begin) const {
    int64_t source = -1;
    if (mode == PadMode::kReplicate) source = step < 0 ? 0 : length - 1;
    if (mode == PadMode::kReflect) source = step < 0 ? -step : step < extended ? step : 2 * (extended - 1) - step;
    if (source < 0 || source >= length)
      std::fill_n(out, channels, 0.0f);
    else
      std::copy_n(rows + (pad_left + source - begin) * channels, channels, out);
  }
};

}  // namespace encodec
