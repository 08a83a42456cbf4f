// What the CPU kernels stand on: rows of vectors, threads, and memory that is kept between calls.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// As wide as the registers: compilers split wider vectors badly.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t VecU32 __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef int32_t VecI32 __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef float Vec4 __attribute__((vector_size(4 * sizeof(float))));

typedef uint16_t bf16;  // the upper half of a float

// ---- rows of vectors --------------------------------------------------------------------------------------------
//
// A bf16 vector of 2 x kLanes channels is read as kLanes words: even channels in the lower halves, odd ones in the upper. So a
// pair of fp32 vectors holds (even, odd) channels for bf16 and (lower, upper) ones for fp32: the same in every row,
// and undone by save().

constexpr int kMaxVectors = 4;  // of a row, at a time: accumulators stay in registers

template <typename T>
constexpr int kUnit = sizeof(T) == 2 ? 2 * kLanes : kLanes;  // channels that a row is padded to

template <typename V, typename T>
inline V read(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename T, typename V>
inline void write(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

inline VecU32 rounded(Vec v) {  // bf16 in the upper halves: to nearest, ties to even; NaN stays NaN
  const VecU32 bits = read<VecU32>(&v);
  const VecU32 nan = VecU32{} + 0x7fc00000u;
  return ((v == v) ? bits + 0x7fffu + ((bits >> 16) & 1u) : nan) & 0xffff0000u;
}

template <int V>
inline void load(const float* p, Vec* out) {
  for (int v = 0; v < V; ++v) out[v] = read<Vec>(p + v * kLanes);
}
template <int V>
inline void load(const bf16* p, Vec* out) {
  static_assert(V % 2 == 0, "bf16 rows come in pairs of vectors");
  for (int v = 0; v < V; v += 2) {
    const VecU32 words = read<VecU32>(p + v * kLanes);
    const VecU32 even = words << 16, odd = words & 0xffff0000u;
    out[v] = read<Vec>(&even);
    out[v + 1] = read<Vec>(&odd);
  }
}
template <int V>
inline void save(const Vec* in, float* p) {
  for (int v = 0; v < V; ++v) write(p + v * kLanes, in[v]);
}
template <int V>
inline void save(const Vec* in, bf16* p) {
  for (int v = 0; v < V; v += 2) write(p + v * kLanes, (rounded(in[v]) >> 16) | rounded(in[v + 1]));
}

// The same for the first `channels` of a row in memory that is not padded.
template <int V, typename T>
inline void load_some(const T* p, int64_t channels, Vec* out) {
  if (channels >= V * kLanes) return load<V>(p, out);
  T padded[V * kLanes] = {};
  std::memcpy(padded, p, channels * sizeof(T));
  load<V>(padded, out);
}
template <int V, typename T>
inline void save_some(const Vec* in, int64_t channels, T* p) {
  if (channels >= V * kLanes) return save<V>(in, p);
  T padded[V * kLanes];
  save<V>(in, padded);
  std::memcpy(p, padded, channels * sizeof(T));
}

inline Vec4 quarter_sums(const Vec& v) {  // lanes i, i + 4, i + 8, ... added up
  Vec4 part[kLanes / 4];
  std::memcpy(part, &v, sizeof v);
  for (int i = 1; i < kLanes / 4; ++i) part[0] += part[i];
  return part[0];
}

// ---- threads ----------------------------------------------------------------------------------------------------

// Runs job(slot) on at most `threads` threads. The OpenMP runtime that torch has loaded does it where its entry point
// can be found: its threads spin for a while after torch's own parallel regions and would fight with any of ours.
template <typename Job>
void run_threads(int threads, const Job& job) {
  struct Shared {
    const Job* job;
    std::atomic<int> slots;
    static void enter(void* data) {
      Shared* self = static_cast<Shared*>(data);
      (*self->job)(self->slots.fetch_add(1));
    }
  } shared = {&job, {0}};
  if (threads <= 1) return Shared::enter(&shared);
#if defined(__unix__) || defined(__APPLE__)
  typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
  static const Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  if (parallel) return parallel(Shared::enter, &shared, static_cast<unsigned>(threads), 0);
#endif
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) {
    try {
      others.emplace_back(Shared::enter, &shared);
    } catch (...) {  // no more threads to be had: those that run take all the tasks
      break;
    }
  }
  Shared::enter(&shared);
  for (std::thread& other : others) other.join();
}

// Calls work(slot, task) for every task; calls with the same slot never overlap.
template <typename Work>
void run_tasks(int threads, int64_t tasks, const Work& work) {
  std::atomic<int64_t> next(0);
  run_threads(threads, [&](int slot) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) work(slot, task);
  });
}

// ---- memory of a call -------------------------------------------------------------------------------------------

// Some MB, kept from call to call: fresh pages would cost about as much as the work done in them. Calls that run at the
// same time get one each. Aligned, so that rows do not straddle cache lines; in large pages where the system has them.
class Workspace {
 public:
  explicit Workspace(size_t bytes) {
    {
      std::lock_guard<std::mutex> guard(mutex());
      if (!kept().empty()) {
        block_ = std::move(kept().back());
        kept().pop_back();
      }
    }
    if (block_.size < bytes) block_ = Block(bytes);
  }
  ~Workspace() {
    std::lock_guard<std::mutex> guard(mutex());
    try {
      kept().push_back(std::move(block_));
    } catch (...) {  // then it is freed
    }
  }
  void* data() const { return block_.data.get(); }

 private:
  static constexpr size_t kPage = 2 << 20;
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(kPage)); }
  };
  struct Block {
    size_t size = 0;
    std::unique_ptr<void, Free> data;
    Block() = default;
    explicit Block(size_t bytes)
        : size((bytes + kPage - 1) / kPage * kPage), data(::operator new(size, std::align_val_t(kPage))) {
#if defined(__linux__)
      madvise(data.get(), size, MADV_HUGEPAGE);  // a wish: failing changes nothing
#endif
    }
  };
  // Never destroyed: threads may outlive the statics of a library.
  static std::vector<Block>& kept() {
    static auto* blocks = new std::vector<Block>;
    return *blocks;
  }
  static std::mutex& mutex() {
    static auto* one = new std::mutex;
    return *one;
  }
  Block block_;
};

}  // namespace
