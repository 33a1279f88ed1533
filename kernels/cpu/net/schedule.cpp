#include "net/schedule.h"

#include <algorithm>
#include <utility>

namespace encodec {
namespace {

// Clips of an LSTM's group: more would not make its products faster.
constexpr int64_t kGroupClips = 32;
// A piece must be this many times as long as what it computes twice to begin in the middle of a clip.
constexpr int64_t kPieceOverOverlap = 4;
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

int64_t Schedule::add(ClipState& clip, Rows x, int64_t steps, bool final, Rows y) {
  Flow flow = {&clip, steps, final, {}};
  int64_t rows = steps;
  for (size_t i = 0; i < program_.parts.size(); ++i) {
    const Part& part = program_.parts[i];
    const PartState& state = clip.parts[i];
    Leg leg = {x, y, {}, progress_of(state.chain), state.emitted};
    if (part.chain) {
      std::vector<Progress> progress = leg.progress;
      rows = part.chain->advance(progress, rows, final);
    }
    if (i + 1 < program_.parts.size()) {
      leg.memory.resize(rows * part.out_channels());
      leg.y = {leg.memory.data(), part.out_channels(), 1};
    }
    x = leg.y;
    flow.legs.push_back(std::move(leg));
  }
  flows_.push_back(std::move(flow));
  return rows;
}

void Schedule::run() {
  const size_t parts = program_.parts.size();
  const int64_t wave = wave_steps();
  lstm_tasks_.resize(parts);
  for (std::vector<Flow*> flows; begin_wave(wave, flows);)
    for (size_t i = 0; i < parts; ++i) {
      if (program_.parts[i].lstm)
        plan_lstm(i, flows);
      else
        plan_chain(i, flows);
    }
  for (Flow& flow : flows_)
    for (Leg& leg : flow.legs)
      if (leg.last) leg.last->followed = true;

  run_tasks(threads_, tasks_);

  for (Flow& flow : flows_)
    for (size_t i = 0; i < parts; ++i)
      if (Leg& leg = flow.legs[i]; leg.last) {
        flow.clip->parts[i].chain = std::move(leg.last->state);
        flow.clip->parts[i].emitted = leg.emitted;
      }
}

// Takes the next steps of the clips that have some; whether there are any.
bool Schedule::begin_wave(int64_t wave, std::vector<Flow*>& flows) {
  flows.clear();
  for (Flow& flow : flows_)
    if (!flow.ended) flows.push_back(&flow);
  if (flows.empty()) return false;
  if (in_halves(flows))
    wave = INT64_MAX;
  else if (too_few(flows))
    wave = short_wave(wave, flows);
  for (Flow* flow : flows) {
    flow->added = std::min(wave, flow->steps - flow->done);
    flow->done += flow->added;
    flow->ended = flow->done == flow->steps;
    flow->writers.clear();
  }
  return true;
}

// Input steps of a clip's piece of a wave, where there are clips enough for all threads.
int64_t Schedule::wave_steps() const {
  // one thread has nothing that a wave could go beside
  if (threads_ == 1 || program_.whole_clips_only()) return INT64_MAX;
  return program_.first_lstm() ? program_.steps_of_lstm_rows(kWaveRows) : program_.parts.front().chain->tile();
}

bool Schedule::too_few(const std::vector<Flow*>& flows) const {
  return static_cast<int64_t>(flows.size()) < threads_ && !program_.whole_clips_only();
}

bool Schedule::in_halves(const std::vector<Flow*>& flows) const {
  const bool alike = std::all_of(flows.begin(), flows.end(), [&](const Flow* flow) { return flow->steps == flows.front()->steps; });
  return too_few(flows) && alike && static_cast<int64_t>(2 * flows.size()) == threads_;
}

// Input steps of a wave of too few clips: pieces for all threads, and where there is an LSTM, two each for it to begin soon.
int64_t Schedule::short_wave(int64_t wave, const std::vector<Flow*>& flows) const {
  int64_t total = 0;
  const Flow* longest = flows.front();
  for (const Flow* flow : flows) {
    total += flow->steps;
    if (flow->steps > longest->steps) longest = flow;
  }
  wave = program_.first_lstm() ? std::min(wave, total / (2 * threads_)) : total / threads_;
  int64_t least = 1, up = 1, down = 1;
  for (size_t i = 0; i < program_.parts.size(); ++i) {
    const Chain* chain = program_.parts[i].chain.get();
    if (!chain) continue;
    int64_t own_up = 1, own_down = 1;
    chain->rate(own_up, own_down);
    // a chain of one rate has little to do, between two LSTMs or at an end: its pieces may come one after the other
    if (own_up != own_down) least = std::max(least, least_piece(*longest, i, longest->steps * up / down) * down / up);
    chain->rate(up, down);
  }
  return std::max(wave, least);
}

void Schedule::plan_chain(size_t part, const std::vector<Flow*>& flows) {
  const bool alone = too_few(flows), halves = in_halves(flows);
  for (Flow* flow : flows) {
    const int64_t added = std::exchange(flow->added, 0);
    const std::vector<size_t> writers = std::exchange(flow->writers, {});
    const bool final = flow->ended && flow->final;
    const int64_t half = halves && added / 2 >= least_piece(*flow, part, added) ? added / 2 : 0;
    if (half) plan_piece(part, *flow, half, false, alone, writers);
    plan_piece(part, *flow, added - half, final, alone, writers);
  }
}

// Input steps of the shortest piece that may begin anywhere in the flow's next `steps`.
int64_t Schedule::least_piece(const Flow& flow, size_t part, int64_t steps) const {
  const Chain& chain = *program_.parts[part].chain;
  const Leg& leg = flow.legs[part];
  int64_t up = 1, down = 1;
  chain.rate(up, down);
  // the overlap far from the clip's start, which needs less
  std::vector<Progress> progress = leg.progress;
  const int64_t emitted = leg.emitted + chain.advance(progress, steps / 2 / down * down, false);
  const int64_t overlap = progress.front().length - chain.reach(emitted);
  // elsewhere a piece may begin up to a step of the rate later, and has to begin at one
  return kPieceOverOverlap * std::max<int64_t>(1, overlap + 2 * (down - 1));
}

// alone: it should not depend on the piece before. writers: the tasks that write the rows of the flow's wave.
void Schedule::plan_piece(size_t part, Flow& flow, int64_t steps, bool final, bool alone, const std::vector<size_t>& writers) {
  const Chain& chain = *program_.parts[part].chain;
  Leg& leg = flow.legs[part];
  const int64_t before = leg.progress.front().length, emitted = leg.emitted;
  const int64_t outputs = chain.advance(leg.progress, steps, final);
  Piece piece = {leg.taken, steps, leg.given, 0, final, false, 0, leg.last, tasks_.size(), false, {}};
  leg.taken += steps;
  leg.given += outputs;
  leg.emitted += outputs;
  flow.added += outputs;

  std::vector<size_t> after = writers;
  if (leg.last && !(alone && start_in_middle(chain, before, emitted, piece))) {
    leg.last->followed = true;
    after.push_back(leg.last->task);
  }
  flow.writers.push_back(piece.task);
  pieces_.push_back(std::move(piece));
  leg.last = &pieces_.back();
  tasks_.push_back({[this, part, &flow, last = leg.last] { run_piece(part, flow, *last); }, std::move(after)});
}

// Moves the start of a piece, which is the clip's step `before` and gives its output `emitted`, far enough back for it to need no state;
// whether that is possible and costs little.
bool Schedule::start_in_middle(const Chain& chain, int64_t before, int64_t emitted, Piece& piece) {
  int64_t up = 1, down = 1;
  chain.rate(up, down);
  const int64_t reach = chain.reach(emitted), start = reach - (reach % down + down) % down, overlap = before - start;
  ChainState state;
  int64_t first_output = 0;
  const bool costs_little = overlap * kPieceOverOverlap <= piece.steps;
  if (overlap < 0 || overlap > piece.first || !costs_little || !chain.middle(start, state, first_output)) return false;
  piece.first -= overlap;
  piece.steps += overlap;
  piece.skip = emitted - first_output;
  piece.middle = true;
  piece.start = start;
  return true;
}

void Schedule::run_piece(size_t part, Flow& flow, Piece& piece) {
  const Chain& chain = *program_.parts[part].chain;
  const Leg& leg = flow.legs[part];
  int64_t first_output = 0;
  if (piece.middle)
    chain.middle(piece.start, piece.state, first_output);
  else
    piece.state = std::move(piece.before ? piece.before->state : flow.clip->parts[part].chain);
  with_workspace([&](Workspace& workspace) {
    chain.run(program_.ops, piece.state, leg.x.from(piece.first), piece.steps, piece.final, leg.y.from(piece.output), piece.skip,
              workspace, threads_);
  });
  if (!piece.followed) piece.state.clear();
}

void Schedule::plan_lstm(size_t part, std::vector<Flow*> flows) {
  const Lstm& lstm = *program_.parts[part].lstm;
  flows.erase(std::remove_if(flows.begin(), flows.end(), [](const Flow* flow) { return flow->added == 0; }), flows.end());
  if (flows.empty()) return;
  std::stable_sort(flows.begin(), flows.end(), [](const Flow* a, const Flow* b) { return a->added > b->added; });
  const LayerTasks before = std::exchange(lstm_tasks_[part], LayerTasks(lstm.layers()));
  // threads beyond one a layer take clips of their own, dealt out in turn so that each has long and short ones
  const auto count = static_cast<int64_t>(flows.size());
  const int64_t per_layer = (threads_ + lstm.layers() - 1) / lstm.layers();
  const int64_t groups = std::min(count, std::max(per_layer, (count + kGroupClips - 1) / kGroupClips));
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<Flow*> members;
    for (int64_t i = g; i < count; i += groups) members.push_back(flows[i]);
    plan_group(part, members, before, lstm_tasks_[part]);
  }
}

// flows: longest first.
void Schedule::plan_group(size_t part, const std::vector<Flow*>& flows, const LayerTasks& before, LayerTasks& after) {
  const Lstm& lstm = *program_.parts[part].lstm;
  const int64_t steps = LstmBlock::steps(static_cast<int64_t>(flows.size()));
  LayerTasks waits = before;
  waits.resize(lstm.layers());
  for (const Flow* flow : flows) waits[0].insert(waits[0].end(), flow->writers.begin(), flow->writers.end());
  std::vector<std::shared_ptr<LstmBlock>> blocks;
  for (int64_t first = 0; first < flows.front()->added; first += steps) {
    std::vector<LstmClip> clips;
    for (const Flow* flow : flows) {
      const Leg& leg = flow->legs[part];
      const int64_t at = leg.taken + first, left = flow->added - first;
      if (left > 0) clips.push_back({&flow->clip->parts[part].lstm, leg.x.from(at), leg.y.from(at), std::min(left, steps)});
    }
    blocks.push_back(std::make_shared<LstmBlock>(lstm, std::move(clips)));
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
  for (Flow* flow : flows) {
    flow->legs[part].taken += flow->added;
    flow->writers = waits.back();
  }
}

}  // namespace encodec
