// Worker threads shared by all calls of the process: they sleep between calls and never spin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace encodec {

struct Task {
  std::function<void()> body;
  std::vector<size_t> after;  // the tasks, each earlier in the list, that end before it begins
  // Others wait for it: begins before those that are not, on half of the threads while there are any.
  bool urgent = false;
};

// Runs the tasks on the caller and up to threads - 1 workers, earlier ones first where several may begin; returns when all have
// ended. After the first exception no task begins, and it is rethrown. Calls from several threads share the workers; a child process
// starts its own. Bodies see the default floating-point environment. A body may call this itself: threads that the outer call has no
// task for then help.
void run_task_graph(int threads, const std::vector<Task>& tasks);

// As above for body(0) ... body(count - 1), in any order.
void parallel_for(int threads, int64_t count, const std::function<void(int64_t)>& body);

// Whether a call of either, from here, is likely to find a thread without work, or would start one. Takes no lock.
bool has_idle_thread(int threads);

}  // namespace encodec
