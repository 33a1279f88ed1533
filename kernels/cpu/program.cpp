#include "program.h"

#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>

#include "threads.h"

namespace encodec {
namespace {

// Floats of the sequences that all clips together bring to an LSTM at once: longer pushes go in chunks of time.
constexpr int64_t kChunkFloats = 1 << 21;
// Chunks are whole blocks of rows: see kBlockWindows in stages.cpp.
constexpr int64_t kChunkRows = 48;
// Clips that run together: more would gain nothing, and take more memory.
constexpr int64_t kClips = 32;
// A piece of a clip must be this many times as long as what it computes twice to join the piece before.
constexpr int64_t kPieceOverOverlap = 8;

// One clip's steps on their way through one part.
struct Flow {
  ClipState* clip;
  Rows x, y;
  int64_t steps, outputs;
  bool final;
};

// A stretch of a clip that one task computes, starting from the clip's own state or, with `state`, in the middle.
struct Piece {
  size_t flow;
  int64_t first, steps, output, skip;
  bool last, middle;
  ChainState state;
};

std::vector<Progress> progress_of(const ChainState& state) {
  std::vector<Progress> progress;
  for (const StageState& stage : state) progress.push_back(stage.progress);
  return progress;
}

// Steps of a piece, so that the threads share the work evenly, or INT64_MAX where the clips as they are do that.
int64_t piece_steps(const std::vector<Flow>& flows, int threads) {
  int64_t total = 0, longest = 0;
  for (const Flow& flow : flows) {
    total += flow.steps;
    longest = std::max(longest, flow.steps);
  }
  const auto count = static_cast<int64_t>(flows.size());
  const bool alike = total == longest * count;
  if (threads == 1 || (alike && count % threads == 0)) return INT64_MAX;
  if (!alike) return std::max<int64_t>(1, total / (4 * threads));
  const int64_t pieces_per_clip = threads / std::gcd<int64_t>(count, threads);
  return (longest + pieces_per_clip - 1) / pieces_per_clip;
}

// Cuts a clip into pieces of about `steps`. A piece but the first starts early enough for its first output to be right.
void cut(const Chain& chain, const PartState& state, const Flow& flow, size_t index, int64_t steps,
         std::vector<Piece>& pieces) {
  int64_t up = 1, down = 1;
  chain.rate(up, down);
  const std::vector<Progress> start = progress_of(state.chain);
  const int64_t before = start.front().length;
  pieces.push_back({index, 0, flow.steps, 0, 0, true, false, {}});
  if (chain.normed() || flow.steps / 2 < steps / 2) return;
  for (int64_t at = steps; flow.steps - at >= steps / 2; at += steps) {
    const int64_t boundary = (before + at) / down * down;
    std::vector<Progress> progress = start;
    const int64_t output = chain.advance(progress, boundary - before, false);
    const int64_t reach = chain.reach(state.emitted + output);
    const int64_t first = (reach - (reach % down + down) % down);
    Piece piece{index, first - before, before + flow.steps - first, output, 0, true, true, {}};
    int64_t first_output = 0;
    if (first < before || (boundary - first) * kPieceOverOverlap > steps ||
        !chain.middle(first, piece.state, first_output))
      return;
    piece.skip = state.emitted + output - first_output;
    pieces.back().steps = boundary - before - pieces.back().first;
    pieces.back().last = false;
    pieces.push_back(std::move(piece));
  }
}

// Workspaces that tasks pass on, so that each thread touches new memory once.
class Workspaces {
 public:
  std::unique_ptr<Workspace> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

void run_chain(const Ops& ops, const Chain& chain, size_t part, std::vector<Flow>& flows, int threads) {
  std::vector<Piece> pieces;
  const int64_t steps = piece_steps(flows, threads);
  for (size_t i = 0; i < flows.size(); ++i) cut(chain, flows[i].clip->parts[part], flows[i], i, steps, pieces);
  Workspaces workspaces;
  run_tasks(threads, static_cast<int64_t>(pieces.size()), [&](int64_t task) {
    Piece& piece = pieces[task];
    const Flow& flow = flows[piece.flow];
    if (!piece.middle) piece.state = std::move(flow.clip->parts[part].chain);
    std::unique_ptr<Workspace> workspace = workspaces.take();
    chain.run(ops, piece.state, flow.x.from(piece.first), piece.steps, flow.final && piece.last,
              flow.y.from(piece.output), piece.skip, *workspace);
    workspaces.give_back(std::move(workspace));
  });
  for (Piece& piece : pieces) {
    PartState& state = flows[piece.flow].clip->parts[part];
    if (piece.last) {
      state.chain = std::move(piece.state);
      state.emitted += flows[piece.flow].outputs;
    }
  }
}

void run_lstm(const Ops& ops, const Lstm& lstm, size_t part, std::vector<Flow>& flows, int threads) {
  const int64_t hidden = lstm.hidden();
  std::vector<std::vector<float>> copies;
  const auto contiguous = [&](const Rows& rows, int64_t steps) {
    if (rows.channel_stride == 1 && rows.row_stride == hidden) return rows.data;
    return copies.emplace_back(steps * hidden).data();
  };
  std::vector<LstmClip> clips;
  for (Flow& flow : flows) {
    float* x = contiguous(flow.x, flow.steps);
    float* y = contiguous(flow.y, flow.steps);
    if (x != flow.x.data) copy_rows(flow.x, {x, hidden, 1}, flow.steps, hidden);
    clips.push_back({&flow.clip->parts[part].lstm, x, y, flow.steps});
  }
  lstm.run(ops, clips, threads);
  for (size_t i = 0; i < flows.size(); ++i)
    if (clips[i].y != flows[i].y.data) copy_rows({clips[i].y, hidden, 1}, flows[i].y, flows[i].steps, hidden);
}

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

// Input steps of a clip that go through all parts before the next ones.
int64_t encodec_program::chunk_steps(int64_t clips) const {
  if (whole_clips_only()) return INT64_MAX;
  int64_t up = 1, down = 1;
  for (const Part& part : parts) {
    if (part.lstm) {
      const int64_t rows = kChunkFloats / (part.lstm->hidden() * clips * kChunkRows);
      return std::max<int64_t>(1, std::max<int64_t>(1, rows) * kChunkRows * down / up);
    }
    part.chain->rate(up, down);
  }
  return INT64_MAX;
}

void encodec_program::push(const std::vector<ClipState*>& clips, const encodec_clips& x, const int64_t* final, int threads,
                           const encodec_clips& y) const {
  for (size_t from = 0; from < clips.size(); from += kClips) {
    const size_t end = std::min(clips.size(), from + kClips);
    const int64_t chunk = chunk_steps(static_cast<int64_t>(end - from));
    std::vector<int64_t> done(end - from, 0);
    std::vector<Rows> outputs;
    for (size_t b = from; b < end; ++b) outputs.push_back({y.data[b], 1, y.strides[b]});
    for (;;) {
      std::vector<Flow> flows;
      std::vector<size_t> sources;
      for (size_t b = from; b < end; ++b) {
        const int64_t left = x.lengths[b] - done[b - from], steps = std::min(left, chunk);
        if (steps == 0 && (clips[b]->ended || !final[b])) continue;
        const Rows rows = {x.data[b] + done[b - from], 1, x.strides[b]};
        flows.push_back({clips[b], rows, {}, steps, 0, final[b] && steps == left});
        sources.push_back(b - from);
        done[b - from] += steps;
        clips[b]->length += steps;
        clips[b]->ended = flows.back().final;
      }
      if (flows.empty()) break;

      std::vector<std::vector<float>> sequences;
      for (size_t i = 0; i < parts.size(); ++i) {
        const Part& part = parts[i];
        std::vector<std::vector<float>> next(flows.size());
        for (size_t f = 0; f < flows.size(); ++f) {
          Flow& flow = flows[f];
          flow.outputs = flow.steps;
          if (part.chain) {
            std::vector<Progress> progress = progress_of(flow.clip->parts[i].chain);
            flow.outputs = part.chain->advance(progress, flow.steps, flow.final);
          }
          if (i + 1 == parts.size()) {
            flow.y = outputs[sources[f]];
          } else {
            next[f].resize(flow.outputs * part.out_channels());
            flow.y = {next[f].data(), part.out_channels(), 1};
          }
        }
        if (part.chain)
          run_chain(ops, *part.chain, i, flows, threads);
        else
          run_lstm(ops, *part.lstm, i, flows, threads);
        for (Flow& flow : flows) {
          flow.x = flow.y;
          flow.steps = flow.outputs;
        }
        sequences = std::move(next);
      }
      for (size_t f = 0; f < flows.size(); ++f) outputs[sources[f]] = outputs[sources[f]].from(flows[f].outputs);
    }
  }
}
