// Work sharing for the CPU kernels: a small pool of threads, count given by the caller.
#pragma once

#include <cstdint>

namespace flowinv {

// Runs task(context, i) for i in 0..count-1 on up to `threads` threads, the caller's included.
// Which thread runs which i is left open, so tasks write to places of their own. The first
// exception of a task is rethrown. Safe after fork; calls from several threads take turns.
void run_tasks(void (*task)(void* context, std::int64_t i), void* context, std::int64_t count,
               int threads);

template <class F>
inline void parallel_for(std::int64_t count, int threads, const F& f) {
  if (threads <= 1 || count <= 1) {
    for (std::int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  run_tasks([](void* context, std::int64_t i) { (*static_cast<const F*>(context))(i); },
            const_cast<void*>(static_cast<const void*>(&f)), count, threads);
}

}  // namespace flowinv
