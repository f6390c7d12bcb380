// Preloaded into a process: makes one allocation of a test's choice fail.
//
// Counted are, while armed, calls of operator new, malloc, calloc and posix_memalign from code in a
// range of addresses (a loaded module's), or, without a range, calls of posix_memalign from anywhere
// (torch's tensors). The k-th one fails once.
#include <dlfcn.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

extern "C" void* __libc_malloc(std::size_t);
extern "C" void* __libc_calloc(std::size_t, std::size_t);
extern "C" void* __libc_memalign(std::size_t, std::size_t);

namespace {

std::atomic<long> left{0};  // until one fails; 0: none will
std::atomic<long> seen{0};
std::atomic<std::uintptr_t> low{0}, high{0};

bool fails(void* caller, bool of_tensors) {
  const auto address = reinterpret_cast<std::uintptr_t>(caller);
  const std::uintptr_t first = low.load(), last = high.load();
  if (first ? address < first || address >= last : !of_tensors) return false;
  seen.fetch_add(1);
  long now = left.load();
  while (now > 0)
    if (left.compare_exchange_weak(now, now - 1)) return now == 1;
  return false;
}

}  // namespace

extern "C" {

// The k-th counted allocation from now on fails; 0: none. `first` 0: tensors.
void failing_allocator_arm(long k, std::uintptr_t first, std::uintptr_t last) {
  low = first;
  high = last;
  seen = 0;
  left = k;
}

// Counted since then.
long failing_allocator_seen() { return seen.load(); }

void* malloc(std::size_t size) {
  if (low.load() && fails(__builtin_return_address(0), false)) {
    errno = ENOMEM;
    return nullptr;
  }
  return __libc_malloc(size);
}

void* calloc(std::size_t count, std::size_t size) {
  if (low.load() && fails(__builtin_return_address(0), false)) {
    errno = ENOMEM;
    return nullptr;
  }
  return __libc_calloc(count, size);
}

int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
  if (fails(__builtin_return_address(0), true)) return ENOMEM;
  *out = __libc_memalign(alignment, size);
  return *out ? 0 : ENOMEM;
}

}  // extern "C"

void* operator new(std::size_t size) {
  if (low.load() && fails(__builtin_return_address(0), false)) throw std::bad_alloc();
  if (void* found = __libc_malloc(size ? size : 1)) return found;
  throw std::bad_alloc();
}

void* operator new[](std::size_t size) {
  if (low.load() && fails(__builtin_return_address(0), false)) throw std::bad_alloc();
  if (void* found = __libc_malloc(size ? size : 1)) return found;
  throw std::bad_alloc();
}

void* operator new(std::size_t size, std::align_val_t alignment) {
  if (low.load() && fails(__builtin_return_address(0), false)) throw std::bad_alloc();
  if (void* found = __libc_memalign(static_cast<std::size_t>(alignment), size)) return found;
  throw std::bad_alloc();
}

void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
