#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
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
  Graph(const std::vector<Task>& tasks, int helpers, Graph* outer)
      : helpers_wanted(helpers), outer(outer), tasks_(tasks), urgent_limit_(std::max(1, (helpers + 1) / 2)), left_(tasks.size()) {
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
  Graph* const outer;
  int helpers = 0;
  bool caller_waits = false;
  std::condition_variable changed;  // for the caller
  std::exception_ptr error = nullptr;

 private:
  void begin_in(size_t task) { (tasks_[task].urgent ? urgent_ : others_).insert(task); }

  const std::vector<Task>& tasks_;
  const size_t urgent_limit_;
  size_t left_, running_ = 0, urgent_running_ = 0;
  std::vector<size_t> waits_;
  std::vector<std::vector<size_t>> followers_;
  std::set<size_t> urgent_, others_;  // that may begin
};

class Pool {
 public:
  void run(int threads, const std::vector<Task>& tasks) {
    Graph graph(tasks, static_cast<int>(std::min<size_t>(threads, tasks.size())) - 1, current_);
    std::unique_lock<std::mutex> lock(mutex_);
    const auto place = graphs_.insert(graphs_.end(), &graph);
    while (workers_ < graph.helpers_wanted && add_worker()) {
    }
    call_helpers(graph, graph.ready_count());
    for (;;) {
      help(graph, lock);
      if (graph.ended() && graph.helpers == 0) break;
      if (join([&](const Graph& candidate) { return candidate.outer == &graph; }, lock)) continue;
      graph.caller_waits = true;
      wait(graph.changed, lock);
    }
    graphs_.erase(place);
    if (graph.error) std::rethrow_exception(graph.error);
  }

  bool has_idle_thread(int threads) const { return idle_ > 0 || workers_ < threads - 1; }

 private:
  void wait(std::condition_variable& condition, std::unique_lock<std::mutex>& lock) {
    ++idle_;
    condition.wait(lock);
    --idle_;
  }

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

  // Helps the oldest call that wants it and that is one of these; whether there is one. The lock is held on entry and on return.
  template <class Predicate>
  bool join(const Predicate& is_one, std::unique_lock<std::mutex>& lock) {
    const auto found = std::find_if(graphs_.begin(), graphs_.end(), [&](Graph* graph) { return graph->wants_help() && is_one(*graph); });
    if (found == graphs_.end()) return false;
    Graph& graph = **found;
    ++graph.helpers;
    help(graph, lock);
    if (--graph.helpers == 0 && graph.ended()) graph.changed.notify_one();
    return true;
  }

  void call_helpers(Graph& graph, size_t tasks) {
    // the caller of an outer call helps only where it has no task of its own left
    for (Graph* called = &graph; called && tasks > 0; called = called->outer)
      if (std::exchange(called->caller_waits, false)) {
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
    for (;;)
      if (!join([](const Graph&) { return true; }, lock)) wait(work_, lock);
  }

  std::mutex mutex_;
  std::condition_variable work_;
  std::list<Graph*> graphs_;
  std::atomic<int> workers_ = 0, idle_ = 0;
  static thread_local Graph* current_;  // whose task this thread is at
};

thread_local Graph* Pool::current_ = nullptr;

// Never destroyed: workers may still sleep in it when the process ends.
std::atomic<Pool*> pool = nullptr;
std::once_flag pool_once;

}  // namespace

void run_tasks(int threads, const std::vector<Task>& tasks) {
  if (threads <= 1 || tasks.size() <= 1) {
    DefaultFloats floats;
    for (const Task& task : tasks) task.body();
    return;
  }
  std::call_once(pool_once, [] {
    pool = new Pool;
    // the child has none of the workers, and perhaps a locked mutex: it leaves them and starts anew
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  pool.load()->run(threads, tasks);
}

bool has_idle_thread(int threads) {
  const Pool* const made = pool;
  return threads > 1 && (!made || made->has_idle_thread(threads));
}

void run_tasks(int threads, int64_t count, const std::function<void(int64_t)>& body) {
  std::vector<Task> tasks;
  for (int64_t i = 0; i < count; ++i) tasks.push_back({[&body, i] { body(i); }, {}});
  run_tasks(threads, tasks);
}

}  // namespace encodec
