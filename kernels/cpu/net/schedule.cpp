#include "net/schedule.h"

#include <algorithm>
#include <utility>

#include "net/cuts.h"

namespace encodec {
namespace {

// Floats that each thread's workspace may keep between tasks and calls: chunks of a second at 48 kHz take 40 MB. Memory that went back
// to the system comes again page by page, and a huge page can cost milliseconds.
constexpr int64_t kKeptFloats = 16 << 20;

// Calls body with this thread's workspace.
template <class Body>
void with_workspace(const Body& body) {
  struct Trim {
    Workspace& workspace;
    ~Trim() {
      if (workspace.floats() > kKeptFloats) workspace = {};
    }
  } trim = {own_workspace()};
  body(trim.workspace);
}

}  // namespace

int64_t Schedule::add(ClipState& state, Rows x, int64_t steps, bool final, Rows y) {
  ClipPlan clip = {&state, steps, final, {}};
  int64_t rows = steps;
  for (size_t i = 0; i < program_.parts.size(); ++i) {
    const Part& part = program_.parts[i];
    const PartState& place = state.parts[i];
    PartPlan plan = {x, y, {}, progress_of(place.chain), place.emitted};
    if (const Chain* chain = chain_of(part)) {
      std::vector<Progress> progress = plan.progress;
      rows = chain->advance(progress, rows, final);
    }
    if (i + 1 < program_.parts.size()) {
      plan.memory.resize(rows * out_channels(part));
      plan.y = {plan.memory.data(), out_channels(part), 1};
    }
    x = plan.y;
    clip.parts.push_back(std::move(plan));
  }
  clips_.push_back(std::move(clip));
  return rows;
}

void Schedule::run() {
  const size_t parts = program_.parts.size();
  const int64_t wave = wave_steps();
  lstm_tasks_.resize(parts);
  for (std::vector<ClipPlan*> clips; begin_wave(wave, clips);)
    for (size_t i = 0; i < parts; ++i) {
      if (lstm_of(program_.parts[i]))
        plan_lstm(i, clips);
      else
        plan_chain(i, clips);
    }
  for (ClipPlan& clip : clips_)
    for (PartPlan& plan : clip.parts)
      if (plan.last) plan.last->followed = true;

  run_task_graph(threads_, tasks_);

  for (ClipPlan& clip : clips_)
    for (size_t i = 0; i < parts; ++i)
      if (PartPlan& plan = clip.parts[i]; plan.last) {
        clip.state->parts[i].chain = std::move(plan.last->state);
        clip.state->parts[i].emitted = plan.emitted;
      }
}

// Takes the next steps of the clips that have some; whether there are any.
bool Schedule::begin_wave(int64_t wave, std::vector<ClipPlan*>& clips) {
  clips.clear();
  for (ClipPlan& clip : clips_)
    if (!clip.ended) clips.push_back(&clip);
  if (clips.empty()) return false;
  if (in_halves(clips))
    wave = INT64_MAX;
  else if (too_few(clips))
    wave = short_wave(wave, clips);
  for (ClipPlan* clip : clips) {
    clip->added = std::min(wave, clip->steps - clip->done);
    clip->done += clip->added;
    clip->ended = clip->done == clip->steps;
    clip->writers.clear();
  }
  return true;
}

// Input steps of a clip's piece of a wave, where there are clips enough for all threads.
int64_t Schedule::wave_steps() const {
  // one thread has nothing that a wave could go beside
  if (threads_ == 1 || program_.whole_clips_only()) return INT64_MAX;
  return program_.first_lstm() ? program_.steps_of_lstm_rows(bound_of(Cut::kWave)) : chain_of(program_.parts.front())->tile();
}

bool Schedule::too_few(const std::vector<ClipPlan*>& clips) const {
  return static_cast<int64_t>(clips.size()) < threads_ && !program_.whole_clips_only();
}

bool Schedule::in_halves(const std::vector<ClipPlan*>& clips) const {
  const bool alike = std::all_of(clips.begin(), clips.end(), [&](const ClipPlan* clip) { return clip->steps == clips.front()->steps; });
  return too_few(clips) && alike && static_cast<int64_t>(2 * clips.size()) == threads_;
}

// Input steps of a wave of too few clips: pieces for all threads, and where there is an LSTM, two each for it to begin soon.
int64_t Schedule::short_wave(int64_t wave, const std::vector<ClipPlan*>& clips) const {
  int64_t total = 0;
  const ClipPlan* longest = clips.front();
  for (const ClipPlan* clip : clips) {
    total += clip->steps;
    if (clip->steps > longest->steps) longest = clip;
  }
  wave = program_.first_lstm() ? std::min(wave, total / (2 * threads_)) : total / threads_;
  int64_t least = 1, up = 1, down = 1;
  for (size_t i = 0; i < program_.parts.size(); ++i) {
    const Chain* chain = chain_of(program_.parts[i]);
    if (!chain) continue;
    int64_t own_up = 1, own_down = 1;
    chain->rate(own_up, own_down);
    // a chain of one rate has little to do, between two LSTMs or at an end: its pieces may come one after the other
    if (own_up != own_down) least = std::max(least, least_piece(*longest, i, longest->steps * up / down) * down / up);
    chain->rate(up, down);
  }
  return std::max(wave, least);
}

void Schedule::plan_chain(size_t part, const std::vector<ClipPlan*>& clips) {
  const bool alone = too_few(clips), halves = in_halves(clips);
  for (ClipPlan* clip : clips) {
    const int64_t added = std::exchange(clip->added, 0);
    const std::vector<size_t> writers = std::exchange(clip->writers, {});
    const bool final = clip->ended && clip->final;
    const int64_t half = halves && added / 2 >= least_piece(*clip, part, added) ? added / 2 : 0;
    if (half) plan_piece(part, *clip, half, false, alone, writers);
    plan_piece(part, *clip, added - half, final, alone, writers);
  }
}

// Input steps of the shortest piece that may begin anywhere in the clip's next `steps`.
int64_t Schedule::least_piece(const ClipPlan& clip, size_t part, int64_t steps) const {
  const Chain& chain = *chain_of(program_.parts[part]);
  const PartPlan& plan = clip.parts[part];
  int64_t up = 1, down = 1;
  chain.rate(up, down);
  // the overlap far from the clip's start, which needs less
  std::vector<Progress> progress = plan.progress;
  const int64_t emitted = plan.emitted + chain.advance(progress, steps / 2 / down * down, false);
  const int64_t overlap = progress.front().length - chain.reach(emitted);
  // elsewhere a piece may begin up to a step of the rate later, and has to begin at one
  return bound_of(Cut::kTask) * std::max<int64_t>(1, overlap + 2 * (down - 1));
}

// alone: it should not depend on the piece before. writers: the tasks that write the rows of the clip's wave.
void Schedule::plan_piece(size_t part, ClipPlan& clip, int64_t steps, bool final, bool alone, const std::vector<size_t>& writers) {
  const Chain& chain = *chain_of(program_.parts[part]);
  PartPlan& plan = clip.parts[part];
  const int64_t before = plan.progress.front().length, emitted = plan.emitted;
  const int64_t outputs = chain.advance(plan.progress, steps, final);
  Piece piece = {plan.taken, steps, plan.given, 0, final, false, 0, plan.last, tasks_.size(), false, {}};
  plan.taken += steps;
  plan.given += outputs;
  plan.emitted += outputs;
  clip.added += outputs;

  std::vector<size_t> after = writers;
  if (plan.last && !(alone && start_in_middle(chain, before, emitted, piece))) {
    plan.last->followed = true;
    after.push_back(plan.last->task);
  }
  clip.writers.push_back(piece.task);
  pieces_.push_back(std::move(piece));
  plan.last = &pieces_.back();
  tasks_.push_back({[this, part, &clip, last = plan.last] { run_piece(part, clip, *last); }, std::move(after)});
}

// Moves the start of a piece so far back that it needs no state; returns whether that is possible and costs little.
// before: the clip's step that the piece begins with.  emitted: the output that this step gives first.
bool Schedule::start_in_middle(const Chain& chain, int64_t before, int64_t emitted, Piece& piece) {
  int64_t up = 1, down = 1;
  chain.rate(up, down);
  const int64_t reach = chain.reach(emitted), start = reach - (reach % down + down) % down, overlap = before - start;
  ChainState state;
  int64_t first_output = 0;
  const bool costs_little = overlap * bound_of(Cut::kTask) <= piece.steps;
  if (overlap < 0 || overlap > piece.first || !costs_little || !chain.middle(start, state, first_output)) return false;
  piece.first -= overlap;
  piece.steps += overlap;
  piece.skip = emitted - first_output;
  piece.middle = true;
  piece.start = start;
  return true;
}

void Schedule::run_piece(size_t part, ClipPlan& clip, Piece& piece) {
  const Chain& chain = *chain_of(program_.parts[part]);
  const PartPlan& plan = clip.parts[part];
  int64_t first_output = 0;
  if (piece.middle)
    chain.middle(piece.start, piece.state, first_output);
  else
    piece.state = std::move(piece.before ? piece.before->state : clip.state->parts[part].chain);
  with_workspace([&](Workspace& workspace) {
    chain.run(program_.ops, piece.state, plan.x.from(piece.first), piece.steps, piece.final, plan.y.from(piece.output), piece.skip,
              workspace, threads_);
  });
  if (!piece.followed) piece.state.clear();
}

void Schedule::plan_lstm(size_t part, std::vector<ClipPlan*> clips) {
  const Lstm& lstm = *lstm_of(program_.parts[part]);
  clips.erase(std::remove_if(clips.begin(), clips.end(), [](const ClipPlan* clip) { return clip->added == 0; }), clips.end());
  if (clips.empty()) return;
  std::stable_sort(clips.begin(), clips.end(), [](const ClipPlan* a, const ClipPlan* b) { return a->added > b->added; });
  const LayerTasks before = std::exchange(lstm_tasks_[part], LayerTasks(lstm.layers()));
  // threads beyond one a layer take clips of their own, dealt out in turn: each has long and short ones
  const auto count = static_cast<int64_t>(clips.size());
  const int64_t per_layer = (threads_ + lstm.layers() - 1) / lstm.layers(), most = bound_of(Cut::kLstmClips);
  const int64_t groups = std::min(count, std::max(per_layer, (count + most - 1) / most));
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<ClipPlan*> members;
    for (int64_t i = g; i < count; i += groups) members.push_back(clips[i]);
    plan_group(part, members, before, lstm_tasks_[part]);
  }
}

// clips: longest first.
void Schedule::plan_group(size_t part, const std::vector<ClipPlan*>& clips, const LayerTasks& before, LayerTasks& after) {
  const Lstm& lstm = *lstm_of(program_.parts[part]);
  const int64_t steps = LstmBlock::steps(static_cast<int64_t>(clips.size()));
  LayerTasks waits = before;
  waits.resize(lstm.layers());
  for (const ClipPlan* clip : clips) waits[0].insert(waits[0].end(), clip->writers.begin(), clip->writers.end());
  std::vector<std::shared_ptr<LstmBlock>> blocks;
  for (int64_t first = 0; first < clips.front()->added; first += steps) {
    std::vector<LstmClip> shares;
    for (const ClipPlan* clip : clips) {
      const PartPlan& plan = clip->parts[part];
      const int64_t at = plan.taken + first, left = clip->added - first;
      if (left > 0) shares.push_back({&clip->state->parts[part].lstm, plan.x.from(at), plan.y.from(at), std::min(left, steps)});
    }
    blocks.push_back(std::make_shared<LstmBlock>(lstm, std::move(shares)));
  }
  // a layer's blocks together: its weights stay in the last-level cache
  for (int64_t layer = 0; layer < lstm.layers(); ++layer)
    for (const auto& block : blocks) {
      const size_t task = tasks_.size();
      if (layer > 0) waits[layer].push_back(task - blocks.size());
      tasks_.push_back({[this, block, layer] {
                          with_workspace([&](Workspace& workspace) { block->run_layer(program_.ops, layer, workspace); });
                        },
                        std::exchange(waits[layer], {task}), true});
    }
  for (int64_t layer = 0; layer < lstm.layers(); ++layer) after[layer].push_back(waits[layer].front());
  for (ClipPlan* clip : clips) {
    clip->parts[part].taken += clip->added;
    clip->writers = waits.back();
  }
}

}  // namespace encodec
