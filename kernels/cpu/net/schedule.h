// The tasks of a push: the next steps of some clips on their way through the parts of a program, wave by wave.
//
// A wave is a stretch of time that all clips go through before the next one. Each clip's piece of it is one task, or two, in every
// chain; the blocks and layers of an LSTM are tasks for all clips together. An LSTM is one step after the other: while it is at one wave,
// other threads are at the chains of another.
#pragma once

#include <deque>
#include <vector>

#include "net/program.h"
#include "runtime/threads.h"

namespace encodec {

class Schedule {
 public:
  Schedule(const encodec_program& program, int threads) : program_(program), threads_(threads) {}

  // A clip's next steps, and its end if `final`. Returns the outputs that it will have at y.
  int64_t add(ClipState& state, Rows x, int64_t steps, bool final, Rows y);
  // Takes the clips through all parts; their states move on.
  void run();

 private:
  // A stretch of a clip that one task takes through a chain. It goes on from the piece before, or from the clip's state; or, `middle`,
  // it begins so much earlier that its first output is right.
  struct Piece {
    int64_t first, steps;  // rows of the part's x
    int64_t output, skip;  // its first row of y, and outputs before that one
    bool final;
    bool middle;
    int64_t start;  // of a middle piece: the clip's step that is its first
    Piece* before;
    size_t task;
    bool followed;  // by a piece that goes on from its state, or by the next push
    ChainState state;
  };

  // A clip in one part, as far as it has been planned.
  struct PartPlan {
    Rows x, y;
    std::vector<float> memory;  // of y, but for the last part
    std::vector<Progress> progress;
    int64_t emitted;               // outputs since the clip began
    int64_t taken = 0, given = 0;  // rows of x and y
    Piece* last = nullptr;
  };

  struct ClipPlan {
    ClipState* state;
    int64_t steps;
    bool final;
    std::vector<PartPlan> parts;
    int64_t done = 0;
    bool ended = false;  // the wave at hand has its last steps
    // In the wave at hand: the rows that come to the next part, and the tasks that write them.
    int64_t added = 0;
    std::vector<size_t> writers;
  };

  // A layer's tasks that the same layer's next ones come after.
  using LayerTasks = std::vector<std::vector<size_t>>;

  bool begin_wave(int64_t wave, std::vector<ClipPlan*>& clips);
  int64_t wave_steps() const;
  // Fewer clips than threads: their pieces begin in the middle, so that all threads have some.
  bool too_few(const std::vector<ClipPlan*>& clips) const;
  // Half as many clips as threads, all of one length: two pieces of each compute the least twice.
  bool in_halves(const std::vector<ClipPlan*>& clips) const;
  int64_t short_wave(int64_t wave, const std::vector<ClipPlan*>& clips) const;
  void plan_chain(size_t part, const std::vector<ClipPlan*>& clips);
  int64_t least_piece(const ClipPlan& clip, size_t part, int64_t steps) const;
  void plan_piece(size_t part, ClipPlan& clip, int64_t steps, bool final, bool alone, const std::vector<size_t>& writers);
  static bool start_in_middle(const Chain& chain, int64_t before, int64_t emitted, Piece& piece);
  void plan_lstm(size_t part, std::vector<ClipPlan*> clips);
  void plan_group(size_t part, const std::vector<ClipPlan*>& clips, const LayerTasks& before, LayerTasks& after);
  void run_piece(size_t part, ClipPlan& clip, Piece& piece);

  const encodec_program& program_;
  const int threads_;
  std::vector<ClipPlan> clips_;
  std::deque<Piece> pieces_;
  std::vector<Task> tasks_;
  std::vector<LayerTasks> lstm_tasks_;  // of each part, in the wave before
};

}  // namespace encodec
