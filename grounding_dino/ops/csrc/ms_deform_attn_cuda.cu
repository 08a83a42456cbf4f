// The kernels of ms_deform_attn_cuda.cuh as a library: a plain C interface (pointers, sizes, strides, a stream) without
// torch headers. The host never waits and never looks at device memory.

#include "ms_deform_attn_cuda.cuh"

#include <cuda_runtime.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using Forward = void (*)(Problem, const void*, void*);
using Backward = void (*)(Problem, const void*, const void*, float*, float*, float*);
// By dtype, then by whether rows are read in pieces of 4 channels.
constexpr Forward kForward[3][2] = {
    {gd_forward_fp32_1, gd_forward_fp32_4}, {gd_forward_bf16_1, gd_forward_bf16_4}, {gd_forward_fp16_1, gd_forward_fp16_4}};
constexpr Backward kBackward[3][2] = {{gd_backward_fp32_1, gd_backward_fp32_4},
                                      {gd_backward_bf16_1, gd_backward_bf16_4},
                                      {gd_backward_fp16_1, gd_backward_fp16_4}};

Problem unpack(const int64_t* s, const void* shapes, const void* start, const void* locations, const void* weights) {
  return {s[0],  s[1],  s[2],  s[3],  s[4],  s[5],  s[6],  s[7],
          s[8],  s[9],  s[10], s[11], s[12], s[13], s[14], s[15],
          static_cast<const int64_t*>(shapes), static_cast<const int64_t*>(start),
          static_cast<const float*>(locations), static_cast<const float*>(weights)};
}

bool known(int dtype, int width) { return dtype >= 0 && dtype < 3 && (width == 1 || width == 4); }

}  // namespace

// `sizes` (host memory) holds the 16 numbers of Problem in order; all other pointers are device memory. `dtype` of
// values, outputs and their gradients: 0 fp32, 1 bf16, 2 fp16. `width` (1 or 4) channels are read at once, and
// `blocks` blocks started: see registration.py. `value_gradient` is fp32, contiguous and zero on entry.
// Both return a cudaError_t, 0 for success.

EXPORT int gd_ms_deform_attn_cuda_forward(const int64_t* sizes, int dtype, int width, unsigned blocks,
                                          const void* value, const void* spatial_shapes, const void* level_start,
                                          const void* locations, const void* weights, void* output, void* stream) {
  if (!known(dtype, width)) return cudaErrorInvalidValue;
  const Problem p = unpack(sizes, spatial_shapes, level_start, locations, weights);
  kForward[dtype][width == 4]<<<blocks, GD_BLOCK, 0, static_cast<cudaStream_t>(stream)>>>(p, value, output);
  return cudaGetLastError();
}

EXPORT int gd_ms_deform_attn_cuda_backward(const int64_t* sizes, int dtype, int width, unsigned blocks,
                                           const void* value, const void* spatial_shapes, const void* level_start,
                                           const void* locations, const void* weights, const void* gradient,
                                           float* value_gradient, float* location_gradient, float* weight_gradient,
                                           void* stream) {
  if (!known(dtype, width)) return cudaErrorInvalidValue;
  const Problem p = unpack(sizes, spatial_shapes, level_start, locations, weights);
  kBackward[dtype][width == 4]<<<blocks, GD_BLOCK, 0, static_cast<cudaStream_t>(stream)>>>(
      p, value, gradient, value_gradient, location_gradient, weight_gradient);
  return cudaGetLastError();
}

EXPORT const char* gd_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
