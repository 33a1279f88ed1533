// Worker threads shared by all calls of the process: they sleep between calls and never spin.
#pragma once

#include <cstdint>
#include <functional>

namespace encodec {

// Runs body(0) ... body(count - 1), in ascending order of start, on the caller and up to threads - 1 workers; returns when all
// have ended and rethrows the first exception. Calls from several threads share the workers; a child process starts its own.
// A body may wait for one with a lower index. Bodies see the default floating-point environment.
void run_tasks(int threads, int64_t count, const std::function<void(int64_t)>& body);

}  // namespace encodec
