// The thread pool: every task runs once, from many callers, with failures, and after a fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace {

int failures = 0;

void expect(bool good, const char* what) {
  if (good) return;
  std::printf("%s\n", what);
  ++failures;
}

// Runs `count` tasks; whether each ran once.
bool each_once(std::int64_t count, int threads) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
  flowinv::run_tasks(
      [](void* context, std::int64_t i) {
        auto& all = *static_cast<std::vector<std::atomic<int>>*>(context);
        all[static_cast<std::size_t>(i)].fetch_add(1);
      },
      &seen, count, threads);
  for (const auto& times : seen)
    if (times.load() != 1) return false;
  return true;
}

bool failure_arrives(int threads) {
  try {
    flowinv::run_tasks(
        [](void*, std::int64_t i) {
          if (i % 3 == 1) throw std::runtime_error("planted");
        },
        nullptr, 50, threads);
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 7})
    for (const std::int64_t count : {1, 2, 5, 64, 1000})
      expect(each_once(count, threads), "a task that did not run once");
  expect(failure_arrives(4), "a failure that did not arrive");
  std::atomic<bool> good{true};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([&good] {
      for (int i = 0; i < 50; ++i)
        if (!each_once(20 + i, 4) || (i % 10 == 0 && !failure_arrives(3))) good = false;
    });
  for (std::thread& caller : callers) caller.join();
  expect(good, "tasks of callers that share the pool");
#if !defined(__SANITIZE_THREAD__)  // which does not follow threads that a child starts
  const pid_t child = fork();
  if (child == 0) _exit(each_once(100, 3) ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  expect(status == 0, "a fork cannot use the pool");
#endif
  return failures != 0;
}
