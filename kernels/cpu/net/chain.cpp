#include <numeric>
#include <utility>

#include "net/cuts.h"
#include "net/stages.h"

namespace encodec {
namespace {

// The rows of a stage's output that survive its trims.
struct Emitted {
  int64_t skip, count;
};

Emitted emitted(const Stage& stage, const Progress& before, int64_t windows, bool final) {
  const int64_t first = before.next / stage.window.stride * stage.rows_per_window;
  const int64_t skip = std::min(std::max<int64_t>(0, stage.trim_left - first), windows * stage.rows_per_window);
  const int64_t count = windows * stage.rows_per_window - skip - (final ? stage.trim_right : 0);
  return {skip, std::max<int64_t>(0, count)};
}

// Whether a whole clip of `length` rows may go to the next stage with its norm yet to be applied: padding by copies of the clip's
// rows is then theirs as well, zeros would not be.
bool leaves_norm(const Stage& next, int64_t length, bool final) {
  const Window& window = next.window;
  const bool copies = window.mode == PadMode::kReplicate ||
                      (window.mode == PadMode::kReflect && length > std::max(window.pad_left, window.right_padding(length)));
  return next.takes_norm() && final && copies;
}

int64_t advance_stage(const Stage& stage, Progress& progress, int64_t added, bool final) {
  const Progress before = progress;
  const int64_t windows = stage.window.advance(progress, added, final);
  stage.window.consume(progress, windows);
  return emitted(stage, before, windows, final).count;
}

}  // namespace

std::vector<Progress> progress_of(const ChainState& state) {
  std::vector<Progress> progress;
  for (const StageState& stage : state) progress.push_back(stage.progress);
  return progress;
}

void copy_rows(Rows from, Rows to, int64_t rows, int64_t channels) {
  if (from.channel_stride == 1 && to.channel_stride == 1) {
    for (int64_t t = 0; t < rows; ++t) std::copy_n(from.from(t).data, channels, to.from(t).data);
    return;
  }
  // square blocks: neither side leaves the first-level cache between its neighbours
  constexpr int64_t kSide = 16;
  for (int64_t t0 = 0; t0 < rows; t0 += kSide)
    for (int64_t c0 = 0; c0 < channels; c0 += kSide)
      for (int64_t t = t0; t < std::min(rows, t0 + kSide); ++t)
        for (int64_t c = c0; c < std::min(channels, c0 + kSide); ++c)
          to.data[t * to.row_stride + c * to.channel_stride] = from.data[t * from.row_stride + c * from.channel_stride];
}

bool Chain::normed() const {
  return std::any_of(stages_.begin(), stages_.end(), [](const auto& stage) { return stage->normed(); });
}

int64_t Chain::advance(std::vector<Progress>& progress, int64_t added, bool final) const {
  for (size_t i = 0; i < stages_.size(); ++i) added = advance_stage(*stages_[i], progress[i], added, final);
  return added;
}

void Chain::rate(int64_t& up, int64_t& down) const {
  for (const auto& stage : stages_) {
    up *= stage->rows_per_window;
    down *= stage->window.stride;
    const int64_t common = std::gcd(up, down);
    up /= common;
    down /= common;
  }
}

int64_t Chain::reach(int64_t index) const {
  for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage)
    index = (*stage)->window.reach(std::max<int64_t>(0, index + (*stage)->trim_left) / (*stage)->rows_per_window);
  return index;
}

bool Chain::middle(int64_t start, ChainState& state, int64_t& output) const {
  state = open();
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = *stages_[i];
    if (start <= 0 || start % stage.window.stride != 0) return false;
    state[i].progress = stage.window.middle(start);
    state[i].kept.assign(stage.window.held(state[i].progress) * stage.window.channels, 0.0f);
    start = start / stage.window.stride * stage.rows_per_window - stage.trim_left;
  }
  output = start;
  return output >= 0;
}

int64_t Chain::tile() const {
  if (normed()) return INT64_MAX;
  int64_t up = 1, down = 1, step = 1;
  for (const auto& stage : stages_) step *= stage->window.stride;
  // floats per `step` input steps, a whole number of rows everywhere
  int64_t widest = step * in_channels();
  for (const auto& stage : stages_) {
    up *= stage->rows_per_window;
    down *= stage->window.stride;
    widest = std::max(widest, step * up / down * stage->out_channels);
  }
  const int64_t steps = std::max<int64_t>(1, bound_of(Cut::kTile) / widest);
  return step * (steps < 48 ? steps : steps / 48 * 48);
}

void Chain::run(const Ops& ops, ChainState& state, Rows x, int64_t count, bool final, Rows y, int64_t skip,
                Workspace& workspace, int threads) const {
  const int64_t most = tile();
  do {
    const int64_t now = std::min(most, count);
    count -= now;
    const float* out = nullptr;
    const int64_t rows = run_tile(ops, state, x, now, final && count == 0, out, workspace, threads);
    const int64_t dropped = std::min(skip, rows);
    const int64_t channels = out_channels();
    copy_rows({const_cast<float*>(out) + dropped * channels, channels, 1}, y, rows - dropped, channels);
    y = y.from(rows - dropped);
    x = x.from(now);
    skip -= dropped;
  } while (count > 0);
}

int64_t Chain::run_tile(const Ops& ops, ChainState& state, Rows x, int64_t count, bool final, const float*& out,
                        Workspace& workspace, int threads) const {
  // Room for the rows kept from before, `added` new ones and the right padding; and ahead of them, so that the first `dropped` new ones
  // may lie where those from before come later.
  const auto reserve = [&](size_t i, int64_t added, int64_t dropped) {
    const Window& window = stages_[i]->window;
    const int64_t held = window.held(state[i].progress), spare = std::max<int64_t>(0, dropped - held);
    float* const memory = workspace.rows[i % 2].reserve((spare + held + added + window.pad_right + window.stride) * window.channels);
    return memory + spare * window.channels;
  };
  const auto new_rows = [&](size_t i, float* rows) {
    return rows + stages_[i]->window.held(state[i].progress) * stages_[i]->window.channels;
  };

  FittedNorm pending, left;  // norms that the rows in hand, and those of the stage at work, have yet to go through
  float* rows = reserve(0, count, 0);
  copy_rows(x, {new_rows(0, rows), in_channels(), 1}, count, in_channels());
  int64_t added = count;
  for (size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = *stages_[i];
    const Window& window = stage.window;
    StageState& place = state[i];
    const Progress before = place.progress;
    std::copy(place.kept.begin(), place.kept.end(), rows);
    const int64_t held = window.held(before) + added;
    const int64_t windows = window.advance(place.progress, added, final);
    if (place.progress.started && !before.started) window.fill_left(rows, place.progress.length);
    if (!place.progress.started) std::fill_n(rows, window.pad_left * window.channels, 0.0f);  // kept, and perhaps saved
    if (final) window.fill_right(rows, place.progress);

    const Emitted survivors = emitted(stage, before, windows, final);
    const bool last = i + 1 == stages_.size();
    const int64_t produced = windows * stage.rows_per_window;
    float* const next =
        last ? workspace.rows[(i + 1) % 2].reserve(produced * stage.out_channels) : reserve(i + 1, produced, survivors.skip);
    float* const results = last ? next : new_rows(i + 1, next) - survivors.skip * stage.out_channels;
    if (windows > 0)
      stage.run(ops, {rows + (before.next - before.begin) * window.channels, before.next / window.stride, windows, results, workspace,
                      threads, pending ? &pending : nullptr,
                      !last && leaves_norm(*stages_[i + 1], survivors.count, final) ? &left : nullptr});
    pending = std::exchange(left, {});

    window.consume(place.progress, windows);
    float* const keep = rows + (place.progress.begin - before.begin) * window.channels;
    if (final)
      place.kept.clear();
    else
      place.kept.assign(keep, rows + held * window.channels);
    rows = next;
    out = results + survivors.skip * stage.out_channels;
    added = survivors.count;
  }
  return added;
}

}  // namespace encodec
