// Errors as text for the C interface, and states that one call at a time may use.
#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

namespace encodec {

// Of this thread's last call that failed.
inline std::string& last_error() {
  thread_local std::string error;
  return error;
}

template <class Function>
int guarded(const Function& function) {
  try {
    function();
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
  }
  return -1;
}

template <class Function>
auto guarded_new(const Function& function) -> decltype(function()) {
  decltype(function()) made = nullptr;
  guarded([&] { made = function(); });
  return made;
}

inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

// The states of a call, which no other call may have at the same time. A state has an atomic flag `taken`.
template <class State>
class Taken {
 public:
  Taken(const State* const* states, int64_t batch) : states_(states) {
    for (; count_ < batch; ++count_)
      if (states[count_]->taken.exchange(true)) {
        give_back();
        throw std::invalid_argument("this clip is in another call, of another thread perhaps: one call at a time may use a state");
      }
  }
  ~Taken() { give_back(); }
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;

 private:
  void give_back() {
    for (; count_ > 0; --count_) states_[count_ - 1]->taken = false;
  }

  const State* const* states_;
  int64_t count_ = 0;
};

}  // namespace encodec
