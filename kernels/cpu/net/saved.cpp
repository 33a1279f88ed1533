// A clip's state as bytes: little more than the rows and the h and c that it carries, the same on every tier.
//
// Bytes may come from anywhere. Of what they say only the clip's length and whether it has ended are free: these and the program
// decide everything that the engine counts and indexes by, so the rest must be just that.
#include <algorithm>

#include "net/program.h"
#include "runtime/archive.h"

using namespace encodec;

namespace {

constexpr int64_t kMark = 0x31304345;  // "EC01"
// Steps of a clip, 23 years of 24 kHz: no stage's count of rows comes near an overflow.
constexpr int64_t kMostSteps = int64_t{1} << 44;

// All fields of a state in one order, for both ways.
template <class Archive, class State>
void each_field(Archive& archive, State& clip) {
  archive(clip.length);
  archive(clip.ended);
  for (auto& part : clip.parts) {
    archive(part.emitted);
    archive(part.lstm);
    for (auto& stage : part.chain) {
      auto& progress = stage.progress;
      for (auto* count : {&progress.length, &progress.next, &progress.begin}) archive(*count);
      archive(progress.started);
      archive(progress.ended);
      archive(stage.kept);
    }
  }
}

bool same(const Progress& a, const Progress& b) {
  return a.length == b.length && a.next == b.next && a.begin == b.begin && a.started == b.started && a.ended == b.ended;
}

// Whether both have the same counts, and as many floats.
bool alike(const PartState& a, const PartState& b) {
  const auto alike_stages = [](const StageState& one, const StageState& other) {
    return same(one.progress, other.progress) && one.kept.size() == other.kept.size();
  };
  return a.emitted == b.emitted && a.lstm.size() == b.lstm.size() &&
         std::equal(a.chain.begin(), a.chain.end(), b.chain.begin(), b.chain.end(), alike_stages);
}

}  // namespace

void encodec_program::save(const ClipState& clip, std::vector<char>& bytes) const {
  Writer writer(bytes);
  writer(kMark);
  each_field(writer, clip);
}

ClipState encodec_program::at(int64_t length, bool ended) const {
  ClipState clip = open();
  clip.length = length;
  clip.ended = ended;
  if (length == 0 && !ended) return clip;  // a push of nothing leaves a clip as it was
  int64_t rows = length;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Chain* chain = chain_of(parts[i]);
    if (!chain) continue;
    std::vector<Progress> progress = progress_of(clip.parts[i].chain);
    rows = clip.parts[i].emitted = chain->advance(progress, rows, ended);
    for (size_t j = 0; j < progress.size(); ++j) {
      StageState& stage = clip.parts[i].chain[j];
      stage.progress = progress[j];
      stage.kept.assign(chain->window(j).held(progress[j]) * chain->window(j).channels, 0.0f);
    }
  }
  return clip;
}

ClipState encodec_program::load(const char* bytes, int64_t size) const {
  Reader reader(bytes, size);
  int64_t mark = 0;
  reader(mark);
  Reader::require(mark == kMark);
  ClipState clip = open();
  each_field(reader, clip);
  reader.end();
  Reader::require(0 <= clip.length && clip.length <= kMostSteps);
  Reader::require(!whole_clips_only() || clip.ended || clip.length == 0);
  const ClipState expected = at(clip.length, clip.ended);
  Reader::require(std::equal(clip.parts.begin(), clip.parts.end(), expected.parts.begin(), expected.parts.end(), alike));
  return clip;
}
