// Calls of parallel_for from inside its tasks: never more bodies at once than threads, whatever the pool has from before; exceptions come
// through; and many callers at once get all of their tasks run.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include "runtime/threads.h"

using namespace encodec;

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

void limits() {
  parallel_for(8, 8, [](int64_t) { pause(); });  // the pool has seven workers now
  for (int threads : {2, 3}) {
    std::atomic<int> running = 0, most = 0, done = 0;
    parallel_for(threads, threads, [&](int64_t) {
      parallel_for(threads, 8 * threads, [&](int64_t) {
        const int now = ++running;
        for (int before = most; before < now && !most.compare_exchange_weak(before, now);) {
        }
        pause();
        --running;
        ++done;
      });
    });
    require(most <= threads, "no more bodies at once than threads");
    require(done == 8 * threads * threads, "every inner task runs");
  }
}

void exceptions() {
  for (int round = 0; round < 20; ++round) {
    bool caught = false;
    try {
      parallel_for(3, 4, [](int64_t outer) {
        parallel_for(3, 6, [outer](int64_t inner) {
          if (outer == 2 && inner == 3) throw std::runtime_error("inner");
        });
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    require(caught, "an exception of an inner task is rethrown by the outer call");
  }
}

void callers() {
  std::atomic<int> done = 0;
  std::vector<std::thread> threads;
  for (int caller = 0; caller < 4; ++caller)
    threads.emplace_back([&, caller] {
      for (int round = 0; round < 50; ++round)
        parallel_for(1 + caller, 5, [&](int64_t) { parallel_for(1 + caller, 7, [&](int64_t) { ++done; }); });
    });
  for (std::thread& thread : threads) thread.join();
  require(done == 4 * 50 * 5 * 7, "every task of every caller runs");
}

}  // namespace

int main() {
  limits();
  exceptions();
  callers();
  return 0;
}
