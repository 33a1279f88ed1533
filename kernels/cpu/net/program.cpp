#include "net/program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "net/schedule.h"

namespace encodec {
namespace {

// Floats of the sequences that all clips together bring to an LSTM at once: longer pushes go in pieces of time.
constexpr int64_t kPieceFloats = 1 << 22;
// Clips that run together: more would gain nothing, and take more memory.
constexpr int64_t kClips = 128;

}  // namespace
}  // namespace encodec

using namespace encodec;

void encodec_program::require_channels(int64_t channels) const {
  if (!parts.empty() && parts.back().out_channels() != channels)
    throw std::invalid_argument("a stage of " + std::to_string(channels) + " input channels follows one that gives " +
                                std::to_string(parts.back().out_channels()));
}

void encodec_program::append(std::unique_ptr<Stage> stage) {
  require_channels(stage->window.channels);
  if (parts.empty() || !parts.back().chain) parts.push_back({std::make_unique<Chain>(), nullptr});
  parts.back().chain->append(std::move(stage));
}

void encodec_program::append(std::unique_ptr<Lstm> lstm) {
  require_channels(lstm->hidden());
  parts.push_back({nullptr, std::move(lstm)});
}

bool encodec_program::whole_clips_only() const {
  return std::any_of(parts.begin(), parts.end(), [](const Part& part) { return part.chain && part.chain->normed(); });
}

ClipState encodec_program::open() const {
  ClipState clip;
  for (const Part& part : parts) {
    PartState state;
    if (part.chain) state.chain = part.chain->open();
    if (part.lstm) state.lstm = part.lstm->open();
    clip.parts.push_back(std::move(state));
  }
  return clip;
}

int64_t encodec_program::ready(const ClipState& clip, int64_t added, bool final) const {
  for (size_t i = 0; i < parts.size(); ++i)
    if (parts[i].chain) {
      std::vector<Progress> progress = progress_of(clip.parts[i].chain);
      added = parts[i].chain->advance(progress, added, final);
    }
  return added;
}

const Lstm* encodec_program::first_lstm() const {
  const auto part = std::find_if(parts.begin(), parts.end(), [](const Part& candidate) { return candidate.lstm != nullptr; });
  return part == parts.end() ? nullptr : part->lstm.get();
}

int64_t encodec_program::steps_of_lstm_rows(int64_t rows) const {
  int64_t up = 1, down = 1;
  for (auto part = parts.begin(); part->chain; ++part) part->chain->rate(up, down);
  return std::max<int64_t>(1, rows * down / up);
}

// Input steps of a clip that go through all parts before the next ones: whole waves.
int64_t encodec_program::piece_steps(int64_t clips) const {
  const Lstm* lstm = first_lstm();
  if (whole_clips_only() || !lstm) return INT64_MAX;
  const int64_t waves = kPieceFloats / (lstm->hidden() * clips * kWaveRows);
  return steps_of_lstm_rows(std::max<int64_t>(1, waves) * kWaveRows);
}

void encodec_program::push(const std::vector<ClipState*>& clips, const encodec_clips& x, const int64_t* final, int threads,
                           const encodec_clips& y) const {
  for (size_t from = 0; from < clips.size(); from += kClips) {
    const size_t end = std::min(clips.size(), from + kClips);
    const int64_t piece = piece_steps(static_cast<int64_t>(end - from));
    std::vector<int64_t> done(end - from, 0);
    std::vector<Rows> outputs;
    for (size_t b = from; b < end; ++b) outputs.push_back({y.data[b], 1, y.strides[b]});
    for (;;) {
      Schedule schedule(*this, threads);
      bool added = false;
      for (size_t b = from; b < end; ++b) {
        ClipState& clip = *clips[b];
        const int64_t left = x.lengths[b] - done[b - from], steps = std::min(left, piece);
        if (steps == 0 && (clip.ended || !final[b])) continue;
        const bool ends = final[b] && steps == left;
        Rows& output = outputs[b - from];
        output = output.from(schedule.add(clip, {x.data[b] + done[b - from], 1, x.strides[b]}, steps, ends, output));
        done[b - from] += steps;
        clip.length += steps;
        clip.ended = ends;
        added = true;
      }
      if (!added) break;
      schedule.run();
    }
  }
}
