// Multi-scale deformable attention on NVIDIA GPUs: the kernels, for nvcc and for NVRTC; fp32, bf16 and fp16 values, fp32
// arithmetic. A level that would leave the values counts as outside, so nothing out of bounds is read or written.
//
// GD_GROUP neighbouring threads share a (picture, query, head); each holds W channels at a time, so that a row is
// read in one coalesced piece. Backward adds up the gradient of the values with atomics, in fp32: its last bits depend
// on the order in which they arrive.
//
// Whoever compiles this defines GD_GROUP and GD_BLOCK, threads of a block (loader.py, which also counts the blocks).

#pragma once

#if defined(__CUDACC_RTC__)
typedef long long int64_t;  // NVRTC comes without the C++ library
#else
#include <cstdint>
#endif
#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Problem {
  int64_t batch, tokens, heads, channels, queries, levels, points;
  int64_t value_batch, value_token, value_head;           // strides in elements; channels are contiguous
  int64_t location_batch, location_query, location_head;  // (levels, points, 2) is contiguous
  int64_t weight_batch, weight_query, weight_head;        // (levels, points) is contiguous
  const int64_t* spatial_shapes;
  const int64_t* level_start;
  const float* locations;
  const float* weights;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void from_float(float x, float* p) { *p = x; }
__device__ inline void from_float(float x, __half* p) { *p = __float2half_rn(x); }
__device__ inline void from_float(float x, __nv_bfloat16* p) { *p = __float2bfloat16_rn(x); }

template <typename T, int W>
struct alignas(sizeof(T) * W) Pack {
  T x[W];
};

template <int W, typename T>
__device__ inline void load(const T* p, float* out) {
  const Pack<T, W> pack = *reinterpret_cast<const Pack<T, W>*>(p);
#pragma unroll
  for (int i = 0; i < W; ++i) out[i] = to_float(pack.x[i]);
}

template <int W, typename T>
__device__ inline void store(const float* in, T* p) {
  Pack<T, W> pack;
#pragma unroll
  for (int i = 0; i < W; ++i) from_float(in[i], &pack.x[i]);
  *reinterpret_cast<Pack<T, W>*>(p) = pack;
}

template <int W>
__device__ inline void add(float* p, const float* x) {
#if __CUDA_ARCH__ >= 900
  if constexpr (W == 4) {
    atomicAdd(reinterpret_cast<float4*>(p), make_float4(x[0], x[1], x[2], x[3]));
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < W; ++i) atomicAdd(p + i, x[i]);
  }
}

// Which (picture, query, head) a thread works on.
struct Item {
  int64_t index, b, q, h;  // index counts all three
  bool valid;
  __device__ explicit Item(const Problem& p) {
    const int64_t group = (static_cast<int64_t>(blockIdx.x) * GD_BLOCK + threadIdx.x) / GD_GROUP;
    const int64_t items = p.batch * p.queries * p.heads;
    valid = group < items;
    index = valid ? group : items - 1;  // surplus threads keep step with their warp and write nothing
    h = index % p.heads;
    q = index / p.heads % p.queries;
    b = index / p.heads / p.queries;
  }
  __device__ const float* location(const Problem& p) const {
    return p.locations + b * p.location_batch + q * p.location_query + h * p.location_head;
  }
  __device__ const float* weight(const Problem& p) const {
    return p.weights + b * p.weight_batch + q * p.weight_query + h * p.weight_head;
  }
};

// A sample's four rows (top left, top right, bottom left, bottom right; -1 outside) and where it lies between them.
struct Corners {
  int64_t row[4];
  float fx, fy, width, height;
  __device__ Corners(const Problem& p, int64_t level, float x_relative, float y_relative) {
    const int64_t h = p.spatial_shapes[2 * level], w = p.spatial_shapes[2 * level + 1], start = p.level_start[level];
    width = static_cast<float>(w), height = static_cast<float>(h);
    const float x = x_relative * width - 0.5f, y = y_relative * height - 0.5f;
    const bool fits = start >= 0 && start + h * w <= p.tokens;
    const bool inside = fits && x > -1.0f && x < width && y > -1.0f && y < height;  // false for NaN
    const float left = inside ? floorf(x) : 0.0f, top = inside ? floorf(y) : 0.0f;
    fx = inside ? x - left : 0.0f, fy = inside ? y - top : 0.0f;
    const bool at_left = inside && left >= 0.0f, at_right = inside && left + 1.0f < width;
    const bool at_top = top >= 0.0f, at_bottom = top + 1.0f < height;
    const int64_t first = start + static_cast<int64_t>(top) * w + static_cast<int64_t>(left);
    row[0] = at_top && at_left ? first : -1;
    row[1] = at_top && at_right ? first + 1 : -1;
    row[2] = at_bottom && at_left ? first + w : -1;
    row[3] = at_bottom && at_right ? first + w + 1 : -1;
  }
  __device__ float weight(int corner) const {
    return (corner < 2 ? 1.0f - fy : fy) * (corner % 2 ? fx : 1.0f - fx);
  }
};

template <typename T, int W>
__device__ inline void forward(const Problem& p, const T* value, T* out) {
  const Item item(p);
  if (!item.valid) return;
  const float* location = item.location(p);
  const float* weight = item.weight(p);
  const T* head = value + item.b * p.value_batch + item.h * p.value_head;
  for (int64_t c = threadIdx.x % GD_GROUP * W; c < p.channels; c += GD_GROUP * W) {
    float sum[W] = {};
    int64_t n = 0;
    for (int64_t level = 0; level < p.levels; ++level) {
      for (int64_t point = 0; point < p.points; ++point, ++n) {
        const Corners corners(p, level, location[2 * n], location[2 * n + 1]);
        const float a = weight[n];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (corners.row[corner] < 0) continue;
          float x[W];
          load<W>(head + corners.row[corner] * p.value_token + c, x);
          const float w = a * corners.weight(corner);
#pragma unroll
          for (int i = 0; i < W; ++i) sum[i] += w * x[i];
        }
      }
    }
    store<W>(sum, out + item.index * p.channels + c);
  }
}

template <typename T, int W>
__device__ inline void backward(const Problem& p, const T* value, const T* gradient, float* value_gradient,
                                float* location_gradient, float* weight_gradient) {
  const Item item(p);
  const float* location = item.location(p);
  const float* weight = item.weight(p);
  const int lane = threadIdx.x % GD_GROUP;
  const int64_t samples = p.levels * p.points, width = p.heads * p.channels;
  const T* head = value + item.b * p.value_batch + item.h * p.value_head;
  const T* g_row = gradient + item.index * p.channels;
  float* head_gradient = value_gradient + item.b * p.tokens * width + item.h * p.channels;
  for (int64_t n = 0; n < samples; ++n) {
    const Corners corners(p, n / p.points, location[2 * n], location[2 * n + 1]);
    const float a = weight[n];
    float dot[4] = {};
    for (int64_t c = lane * W; c < p.channels; c += GD_GROUP * W) {
      float g[W];
      load<W>(g_row + c, g);
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        if (corners.row[corner] < 0) continue;
        float x[W], share[W];
        load<W>(head + corners.row[corner] * p.value_token + c, x);
        const float w = a * corners.weight(corner);
#pragma unroll
        for (int i = 0; i < W; ++i) {
          dot[corner] += g[i] * x[i];
          share[i] = w * g[i];
        }
        if (item.valid) add<W>(head_gradient + corners.row[corner] * width + c, share);
      }
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner)
      for (int offset = GD_GROUP / 2; offset > 0; offset /= 2)
        dot[corner] += __shfl_xor_sync(0xffffffffu, dot[corner], offset, GD_GROUP);
    if (item.valid && lane == 0) {
      const float fx = corners.fx, fy = corners.fy, gx = 1.0f - fx, gy = 1.0f - fy;
      const int64_t at = item.index * samples + n;
      weight_gradient[at] = gy * (gx * dot[0] + fx * dot[1]) + fy * (gx * dot[2] + fx * dot[3]);
      location_gradient[2 * at] = a * corners.width * (gy * (dot[1] - dot[0]) + fy * (dot[3] - dot[2]));
      location_gradient[2 * at + 1] = a * corners.height * (gx * (dot[2] - dot[0]) + fx * (dot[3] - dot[1]));
    }
  }
}

// gd_forward_TYPE_W and gd_backward_TYPE_W: kernels under plain names, which the CUDA driver finds them by.
#define GD_KERNELS(NAME, T, W)                                                                              \
  extern "C" __global__ void __launch_bounds__(GD_BLOCK)                                                    \
      gd_forward_##NAME##_##W(Problem p, const void* value, void* out) {                                    \
    forward<T, W>(p, static_cast<const T*>(value), static_cast<T*>(out));                                   \
  }                                                                                                         \
  extern "C" __global__ void __launch_bounds__(GD_BLOCK)                                                    \
      gd_backward_##NAME##_##W(Problem p, const void* value, const void* gradient, float* value_gradient,   \
                               float* location_gradient, float* weight_gradient) {                          \
    backward<T, W>(p, static_cast<const T*>(value), static_cast<const T*>(gradient), value_gradient,        \
                   location_gradient, weight_gradient);                                                     \
  }

GD_KERNELS(fp32, float, 1)
GD_KERNELS(fp32, float, 4)
GD_KERNELS(bf16, __nv_bfloat16, 1)
GD_KERNELS(bf16, __nv_bfloat16, 4)
GD_KERNELS(fp16, __half, 1)
GD_KERNELS(fp16, __half, 4)
