// Enough of CUDA to run a kernel's source on a CPU, one thread for each of a warp's 32: slow, and the same arithmetic.
#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(n)

typedef void* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t code) { return code ? "invalid argument" : "no error"; }

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx;

struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline std::mutex atomics;
inline float atomicAdd(float* p, float x) {
  std::lock_guard<std::mutex> guard(atomics);
  const float old = *p;
  *p += x;
  return old;
}
inline float4 atomicAdd(float4* p, float4 x) {
  float* f = reinterpret_cast<float*>(p);
  return {atomicAdd(f, x.x), atomicAdd(f + 1, x.y), atomicAdd(f + 2, x.z), atomicAdd(f + 3, x.w)};
}

inline std::barrier<>* warp;
inline float shuffled[32];
inline float __shfl_xor_sync(unsigned, float x, int offset, int) {
  const unsigned lane = threadIdx.x % 32;
  shuffled[lane] = x;
  warp->arrive_and_wait();
  const float other = shuffled[lane ^ offset];
  warp->arrive_and_wait();
  return other;
}

// kernel<<<blocks, threads, 0, stream>>>(arguments...)
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, unsigned blocks, unsigned threads, Arguments... arguments) {
  for (unsigned first = 0; first < blocks * threads; first += 32) {
    std::barrier<> lanes(32);
    warp = &lanes;
    std::vector<std::thread> running;
    for (unsigned lane = 0; lane < 32; ++lane)
      running.emplace_back([=] {
        blockIdx.x = (first + lane) / threads;
        threadIdx.x = (first + lane) % threads;
        kernel(arguments...);
      });
    for (std::thread& thread : running) thread.join();
  }
}
