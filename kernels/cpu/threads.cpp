#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace encodec {
namespace {

// Rounding to nearest and no flushing of subnormals, whatever the caller set: the bits depend on it.
class DefaultFloats {
#if defined(__x86_64__)
  unsigned saved_ = _mm_getcsr();

 public:
  DefaultFloats() { _mm_setcsr(0x1f80); }
  ~DefaultFloats() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
  uint64_t saved_;

 public:
  DefaultFloats() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
  }
  ~DefaultFloats() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
 public:
  DefaultFloats() {}
#endif
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;
};

struct Job {
  const std::function<void(int64_t)>* body;
  int64_t count;
  int helpers_wanted;
  int64_t next = 0;
  int helpers = 0;
  std::exception_ptr error = nullptr;
};

class Pool {
 public:
  void run(int threads, int64_t count, const std::function<void(int64_t)>& body) {
    Job job{&body, count, static_cast<int>(std::min<int64_t>(threads, count)) - 1};
    std::unique_lock<std::mutex> lock(mutex_);
    const auto place = jobs_.insert(jobs_.end(), &job);
    while (workers_ < job.helpers_wanted && add_worker()) {
    }
    if (job.helpers_wanted > 0) work_.notify_all();
    help(job, lock);
    jobs_.erase(place);
    idle_.wait(lock, [&] { return job.helpers == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  // Takes tasks until none is left; the lock is held on entry and on return.
  static void help(Job& job, std::unique_lock<std::mutex>& lock) {
    while (job.next < job.count) {
      const int64_t task = job.next++;
      lock.unlock();
      std::exception_ptr error;
      try {
        DefaultFloats floats;
        (*job.body)(task);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && !job.error) job.error = error;
      if (error) job.next = job.count;
    }
  }

  // Fewer workers than asked for is slower, not wrong: the caller runs the tasks itself.
  bool add_worker() {
    try {
      std::thread(&Pool::serve, this).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++workers_;
    return true;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      work_.wait(lock, [&] {
        for (Job* candidate : jobs_)
          if (candidate->next < candidate->count && candidate->helpers < candidate->helpers_wanted) job = candidate;
        return job != nullptr;
      });
      ++job->helpers;
      help(*job, lock);
      if (--job->helpers == 0) idle_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_, idle_;
  std::list<Job*> jobs_;
  int workers_ = 0;
};

// Never destroyed: workers may still sleep in it when the process ends.
Pool* pool = nullptr;
std::once_flag pool_once;

}  // namespace

void run_tasks(int threads, int64_t count, const std::function<void(int64_t)>& body) {
  if (threads <= 1 || count <= 1) {
    DefaultFloats floats;
    for (int64_t task = 0; task < count; ++task) body(task);
    return;
  }
  std::call_once(pool_once, [] {
    pool = new Pool;
    // the child has none of the workers, and perhaps a locked mutex: it leaves them and starts anew
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  pool->run(threads, count, body);
}

}  // namespace encodec
