// A run of stages as parts, which are chains with LSTMs between them; and the state of a clip on its way through them.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "net/lstm.h"
#include "net/stages.h"

namespace encodec {

using Part = std::variant<Chain, Lstm>;

// The part, or null where it is the other kind.
inline const Chain* chain_of(const Part& part) { return std::get_if<Chain>(&part); }
inline const Lstm* lstm_of(const Part& part) { return std::get_if<Lstm>(&part); }
int64_t out_channels(const Part& part);

// A clip's place in one part; of `chain` and `lstm` only that of the part's kind is in use.
struct PartState {
  ChainState chain;
  int64_t emitted = 0;  // outputs of the chain so far
  LstmState lstm;
};

struct ClipState {
  std::vector<PartState> parts;
  int64_t length = 0;
  bool ended = false;
};

}  // namespace encodec

struct encodec_program {
  explicit encodec_program(const encodec::Ops& tier) : ops(tier) {}

  void append(std::unique_ptr<encodec::Stage> stage);
  void append(encodec::Lstm lstm);
  bool whole_clips_only() const;
  // Null if there is none.
  const encodec::Lstm* first_lstm() const;
  // Input steps that bring so many rows to the first LSTM; there is one.
  int64_t steps_of_lstm_rows(int64_t rows) const;
  encodec::ClipState open() const;
  // Outputs of `added` more steps.
  int64_t ready(const encodec::ClipState& clip, int64_t added, bool final) const;
  void push(const std::vector<encodec::ClipState*>& clips, const encodec_clips& x, const int64_t* final, int threads,
            const encodec_clips& y) const;
  // The state of a clip after `length` steps, which are all of it if `ended`, however they were cut; its floats are zeros.
  encodec::ClipState at(int64_t length, bool ended) const;
  // The state as bytes, appended; and back, or std::invalid_argument.
  void save(const encodec::ClipState& clip, std::vector<char>& bytes) const;
  encodec::ClipState load(const char* bytes, int64_t size) const;

  const encodec::Ops& ops;
  std::vector<encodec::Part> parts;

 private:
  void require_channels(int64_t channels) const;
  int64_t piece_steps(int64_t clips) const;
};
