#include "runtime/threads.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

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

// A call's tasks on their way. Used under the pool's lock.
class Graph {
 public:
  // outer: the call that one of its tasks makes this one from, or null.
  Graph(const std::vector<Task>& tasks, int threads, Graph* outer)
      : helpers_wanted(static_cast<int>(std::min<size_t>(threads, tasks.size())) - 1),
        outer(outer),
        outermost(outer ? outer->outermost : this),
        tasks_(tasks),
        most_workers_(threads - 1),
        urgent_limit_(std::max(1, (helpers_wanted + 1) / 2)),
        left_(tasks.size()) {
    waits_.resize(tasks.size());
    followers_.resize(tasks.size());
    for (size_t task = 0; task < tasks.size(); ++task) {
      waits_[task] = tasks[task].after.size();
      for (size_t before : tasks[task].after) followers_[before].push_back(task);
      if (waits_[task] == 0) begin_in(task);
    }
  }

  bool ready() const { return !urgent_.empty() || !others_.empty(); }
  bool wants_help() const { return ready() && helpers < helpers_wanted; }
  // Whether the outermost call, with all within it, may have a worker more.
  bool may_grow() const { return outermost->workers < outermost->most_workers_; }
  bool is_within(const Graph& other) const { return outer && (outer == &other || outer->is_within(other)); }
  size_t ready_count() const { return urgent_.size() + others_.size(); }
  bool ended() const { return running_ == 0 && (left_ == 0 || error != nullptr); }

  size_t take() {
    const bool urgent = !urgent_.empty() && (urgent_running_ < urgent_limit_ || others_.empty());
    std::set<size_t>& from = urgent ? urgent_ : others_;
    const size_t task = *from.begin();
    from.erase(from.begin());
    ++running_;
    urgent_running_ += urgent;
    return task;
  }

  void finish(size_t task, std::exception_ptr failure) {
    --running_;
    --left_;
    urgent_running_ -= tasks_[task].urgent;
    if (failure && !error) error = failure;
    if (error) {
      urgent_.clear();
      others_.clear();
      return;
    }
    for (size_t follower : followers_[task])
      if (--waits_[follower] == 0) begin_in(follower);
  }

  const std::function<void()>& body(size_t task) const { return tasks_[task].body; }

  const int helpers_wanted;
  Graph *const outer, *const outermost;
  int helpers = 0;
  std::atomic<int> workers = 0;  // of an outermost call: at its tasks and at those of calls within it
  std::atomic<bool> caller_waits = false;
  std::condition_variable changed;  // for the caller
  std::exception_ptr error = nullptr;

 private:
  void begin_in(size_t task) { (tasks_[task].urgent ? urgent_ : others_).insert(task); }

  const std::vector<Task>& tasks_;
  const int most_workers_;
  const size_t urgent_limit_;
  size_t left_, running_ = 0, urgent_running_ = 0;
  std::vector<size_t> waits_;
  std::vector<std::vector<size_t>> followers_;
  std::set<size_t> urgent_, others_;  // that may begin
};

class Pool {
 public:
  void run(int threads, const std::vector<Task>& tasks) {
    Graph graph(tasks, threads, current_);
    std::unique_lock<std::mutex> lock(mutex_);
    const auto place = graphs_.insert(graphs_.end(), &graph);
    while (workers_ < graph.helpers_wanted && add_worker()) {
    }
    call_helpers(graph, graph.ready_count());
    for (;;) {
      help(graph, lock);
      if (graph.ended() && graph.helpers == 0) break;
      if (Graph* inner = find([&](const Graph& candidate) { return candidate.is_within(graph); })) {
        join(*inner, lock);
        continue;
      }
      graph.caller_waits = true;
      graph.changed.wait(lock);
      graph.caller_waits = false;
    }
    graphs_.erase(place);
    if (graph.error) std::rethrow_exception(graph.error);
  }

  bool has_idle_thread(int threads) const {
    if (current_ && current_->outermost->caller_waits) return true;
    return (!current_ || current_->may_grow()) && (idle_workers_ > 0 || workers_ < threads - 1);
  }

 private:
  // Takes tasks until none may begin; the lock is held on entry and on return.
  void help(Graph& graph, std::unique_lock<std::mutex>& lock) {
    while (graph.ready()) {
      const size_t task = graph.take();
      lock.unlock();
      std::exception_ptr error;
      Graph* const outer = std::exchange(current_, &graph);
      try {
        DefaultFloats floats;
        graph.body(task)();
      } catch (...) {
        error = std::current_exception();
      }
      current_ = outer;
      lock.lock();
      const size_t before = graph.ready_count();
      graph.finish(task, error);
      // one of the tasks that may begin now is this thread's next
      const size_t now = graph.ready_count();
      if (now > before) call_helpers(graph, now - (before == 0));
    }
  }

  // The oldest call that wants help and that is one of these, or null.
  template <class Predicate>
  Graph* find(const Predicate& is_one) const {
    const auto found = std::find_if(graphs_.begin(), graphs_.end(), [&](Graph* graph) { return graph->wants_help() && is_one(*graph); });
    return found == graphs_.end() ? nullptr : *found;
  }

  // As `help`, for another thread's call, which is there until the lock is given up.
  void join(Graph& graph, std::unique_lock<std::mutex>& lock) {
    ++graph.helpers;
    help(graph, lock);
    if (--graph.helpers == 0 && graph.ended()) graph.changed.notify_one();
  }

  void call_helpers(Graph& graph, size_t tasks) {
    // the caller of an outer call helps only where it has no task of its own left
    for (Graph* called = &graph; called && tasks > 0; called = called->outer)
      if (called->caller_waits.exchange(false)) {
        called->changed.notify_one();
        --tasks;
      }
    for (int idle = graph.helpers_wanted - graph.helpers; idle > 0 && tasks > 0; --idle, --tasks) work_.notify_one();
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
      if (Graph* graph = find([](const Graph& candidate) { return candidate.may_grow(); })) {
        ++graph->outermost->workers;
        join(*graph, lock);
        --graph->outermost->workers;
      } else {
        ++idle_workers_;
        work_.wait(lock);
        --idle_workers_;
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable work_;
  std::list<Graph*> graphs_;
  std::atomic<int> workers_ = 0, idle_workers_ = 0;
  static thread_local Graph* current_;  // whose task this thread is at
};

thread_local Graph* Pool::current_ = nullptr;

// Never destroyed: workers may still sleep in it when the process ends.
std::atomic<Pool*> pool = nullptr;

// A forked child has none of the workers, and perhaps a locked mutex: it leaves them and starts anew. From the library's loading on, and
// nothing below waits for another thread to make the pool: there is no moment at which a fork would leave the child waiting.
#if !defined(_WIN32)  // which has no fork
[[gnu::constructor]] void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] {
    if (pool) pool = new Pool;
  });
}
#endif

Pool& the_pool() {
  Pool* made = pool;
  if (made) return *made;
  auto fresh = std::make_unique<Pool>();
  return pool.compare_exchange_strong(made, fresh.get()) ? *fresh.release() : *made;
}

}  // namespace

void run_task_graph(int threads, const std::vector<Task>& tasks) {
  if (threads <= 1 || tasks.size() <= 1) {
    DefaultFloats floats;
    for (const Task& task : tasks) task.body();
    return;
  }
  the_pool().run(threads, tasks);
}

bool has_idle_thread(int threads) {
  const Pool* const made = pool;
  return threads > 1 && (!made || made->has_idle_thread(threads));
}

void parallel_for(int threads, int64_t count, const std::function<void(int64_t)>& body) {
  std::vector<Task> tasks;
  for (int64_t i = 0; i < count; ++i) tasks.push_back({[&body, i] { body(i); }, {}});
  run_task_graph(threads, tasks);
}

}  // namespace encodec
