#include "net/program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "net/cuts.h"
#include "net/schedule.h"

namespace encodec {

int64_t out_channels(const Part& part) {
  const Chain* chain = chain_of(part);
  return chain ? chain->out_channels() : std::get<Lstm>(part).hidden();
}

}  // namespace encodec

using namespace encodec;

void encodec_program::require_channels(int64_t channels) const {
  if (!parts.empty() && out_channels(parts.back()) != channels)
    throw std::invalid_argument("a stage of " + std::to_string(channels) + " input channels follows one that gives " +
                                std::to_string(out_channels(parts.back())));
}

void encodec_program::append(std::unique_ptr<Stage> stage) {
  require_channels(stage->window.channels);
  if (parts.empty() || !chain_of(parts.back())) parts.emplace_back(Chain());
  std::get<Chain>(parts.back()).append(std::move(stage));
}

void encodec_program::append(Lstm lstm) {
  require_channels(lstm.hidden());
  parts.emplace_back(std::move(lstm));
}

bool encodec_program::whole_clips_only() const {
  return std::any_of(parts.begin(), parts.end(), [](const Part& part) { return chain_of(part) && chain_of(part)->normed(); });
}

ClipState encodec_program::open() const {
  ClipState clip;
  for (const Part& part : parts) {
    PartState state;
    if (const Chain* chain = chain_of(part)) state.chain = chain->open();
    if (const Lstm* lstm = lstm_of(part)) state.lstm = lstm->open();
    clip.parts.push_back(std::move(state));
  }
  return clip;
}

int64_t encodec_program::ready(const ClipState& clip, int64_t added, bool final) const {
  for (size_t i = 0; i < parts.size(); ++i)
    if (const Chain* chain = chain_of(parts[i])) {
      std::vector<Progress> progress = progress_of(clip.parts[i].chain);
      added = chain->advance(progress, added, final);
    }
  return added;
}

const Lstm* encodec_program::first_lstm() const {
  const auto part = std::find_if(parts.begin(), parts.end(), lstm_of);
  return part == parts.end() ? nullptr : lstm_of(*part);
}

int64_t encodec_program::steps_of_lstm_rows(int64_t rows) const {
  int64_t up = 1, down = 1;
  for (auto part = parts.begin(); chain_of(*part); ++part) chain_of(*part)->rate(up, down);
  return std::max<int64_t>(1, rows * down / up);
}

// Input steps of a clip that go through all parts before the next ones: whole waves.
int64_t encodec_program::piece_steps(int64_t clips) const {
  const Lstm* lstm = first_lstm();
  if (whole_clips_only() || !lstm) return INT64_MAX;
  const int64_t wave = bound_of(Cut::kWave), waves = bound_of(Cut::kPiece) / (lstm->hidden() * clips * wave);
  return steps_of_lstm_rows(std::max<int64_t>(1, waves) * wave);
}

void encodec_program::push(const std::vector<ClipState*>& clips, const encodec_clips& x, const int64_t* final, int threads,
                           const encodec_clips& y) const {
  const auto most = static_cast<size_t>(bound_of(Cut::kClips));
  for (size_t from = 0; from < clips.size(); from += most) {
    const size_t end = std::min(clips.size(), from + most);
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
