// Multi-scale deformable attention for CPUs, forward and backward, fp32 and bf16 values, fp32 arithmetic.
//
// A plain C interface (pointers, sizes, strides, a thread count): no torch headers, so it builds in seconds and
// survives torch upgrades. The Python side has checked shapes, dtypes and that every level lies inside the values.
//
// Each (query, head) is done in two steps: plan() turns its points into rows and weights, several points at a time;
// then the rows are read with whole-row vectors. Backward gives each (picture, head) to one thread, which adds up
// the gradient of the values in query order: results do not depend on threads or their timing.

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t VecU32 __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t VecU16 __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef int32_t VecI32 __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef float Vec4 __attribute__((vector_size(4 * sizeof(float))));

typedef uint16_t bf16;  // the upper half of a float

// ---- numbers ----------------------------------------------------------------------------------------------------

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline void from_float(float x, float* out) { *out = x; }
inline void from_float(float x, bf16* out) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  *out = (x != x) ? 0x7fc0 : static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec load(const bf16* p) {
  VecU16 half;
  std::memcpy(&half, p, sizeof half);
  const VecU32 bits = __builtin_convertvector(half, VecU32) << 16;
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline VecI32 load(const int32_t* p) {
  VecI32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(int32_t* p, VecI32 v) { std::memcpy(p, &v, sizeof v); }
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline void store(bf16* p, Vec v) {
  for (int i = 0; i < kLanes; ++i) from_float(v[i], p + i);
}

inline Vec4 quarter_sums(const Vec& v) {  // lanes i, i + 4, i + 8, i + 12 added up
  Vec4 part[4];
  std::memcpy(part, &v, sizeof v);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// ---- threads ----------------------------------------------------------------------------------------------------

// Runs job(slot) on `threads` threads. The OpenMP runtime that torch has loaded does it where its entry point can be
// found: its threads spin for a while after torch's own parallel regions and would fight with threads of our own.
template <typename Job>
void run_threads(int threads, Job& job) {
  struct Shared {
    Job* job;
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

// ---- one (query, head): points to rows and weights ---------------------------------------------------------------

struct Problem {
  int64_t batch, tokens, heads, channels, queries, levels, points;
  int64_t value_batch, value_token, value_head;           // strides in elements; channels are contiguous
  int64_t location_batch, location_query, location_head;  // (levels, points, 2) is contiguous
  int64_t weight_batch, weight_query, weight_head;        // (levels, points) is contiguous
  const int64_t* spatial_shapes;
  const int64_t* level_start;
  const float* locations;
  const float* weights;

  int64_t samples() const { return levels * points; }
  const float* location(int64_t b, int64_t q, int64_t h) const {
    return locations + b * location_batch + q * location_query + h * location_head;
  }
  const float* weight(int64_t b, int64_t q, int64_t h) const {
    return weights + b * weight_batch + q * weight_query + h * weight_head;
  }
};

// Samples are (level, point) pairs, padded to whole vectors; padding samples have size zero, which nothing falls in.
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// What is equal for all queries: for every sample, its level's size and first row.
struct Levels {
  std::vector<float> width, height;
  std::vector<int32_t> row_length, start;
  explicit Levels(const Problem& p) {
    const int64_t n = padded(p.samples());
    width.resize(n), height.resize(n), row_length.resize(n), start.resize(n);
    for (int64_t i = 0; i < p.samples(); ++i) {
      const int64_t level = i / p.points;
      height[i] = static_cast<float>(p.spatial_shapes[2 * level]);
      width[i] = static_cast<float>(p.spatial_shapes[2 * level + 1]);
      row_length[i] = static_cast<int32_t>(p.spatial_shapes[2 * level + 1]);
      start[i] = static_cast<int32_t>(p.level_start[level]);
    }
  }
};

// Scratch of one thread. A sample's four corners are (top left, top right, bottom left, bottom right).
struct Plan {
  int64_t stride;                // from one corner's (or axis') array to the next
  std::vector<int32_t> rows;     // 4 arrays; -1 where the corner lies outside
  std::vector<float> weights;    // 4 arrays; bilinear times attention weight
  std::vector<float> fraction;   // x, then y
  std::vector<float> dots;       // 4 arrays; backward
  std::vector<float> input;      // x, y, attention weight; padded with zeros
  explicit Plan(int64_t samples)
      : stride(padded(samples)), rows(4 * stride), weights(4 * stride), fraction(2 * stride), dots(4 * stride),
        input(3 * stride) {}
};

inline Vec floor_of(Vec x, VecI32* integer) {  // for |x| < 2^31
  const VecI32 truncated = __builtin_convertvector(x, VecI32);
  *integer = truncated + (__builtin_convertvector(truncated, Vec) > x);  // a true lane is -1
  return __builtin_convertvector(*integer, Vec);
}

inline void plan(const float* __restrict location, const float* __restrict weight, const Levels& levels, int n_samples,
                 Plan& out) {
  const int64_t stride = out.stride;
  float* __restrict input = out.input.data();
  for (int n = 0; n < n_samples; ++n) {
    input[n] = location[2 * n];
    input[stride + n] = location[2 * n + 1];
    input[2 * stride + n] = weight[n];
  }
  for (int64_t n = 0; n < stride; n += kLanes) {
    const Vec w = load(&levels.width[n]), h = load(&levels.height[n]);
    const Vec x_any = load(input + n) * w - 0.5f, y_any = load(input + stride + n) * h - 0.5f;
    const VecI32 inside = (x_any > -1.0f) & (x_any < w) & (y_any > -1.0f) & (y_any < h);  // false for NaN
    const Vec x = inside ? x_any : Vec{}, y = inside ? y_any : Vec{};
    VecI32 column, line;
    const Vec left = floor_of(x, &column), top = floor_of(y, &line);
    const Vec fx = x - left, fy = y - top, gx = 1.0f - fx, gy = 1.0f - fy;
    const VecI32 row_length = load(&levels.row_length[n]);
    const VecI32 row = load(&levels.start[n]) + line * row_length + column;
    const VecI32 at_left = inside & (left >= 0.0f), at_right = inside & (left + 1.0f < w);
    const VecI32 at_top = top >= 0.0f, at_bottom = top + 1.0f < h;
    const VecI32 none = VecI32{} - 1;
    int32_t* rows = &out.rows[n];
    store(rows, (at_top & at_left) ? row : none);
    store(rows + stride, (at_top & at_right) ? row + 1 : none);
    store(rows + 2 * stride, (at_bottom & at_left) ? row + row_length : none);
    store(rows + 3 * stride, (at_bottom & at_right) ? row + row_length + 1 : none);
    const Vec a = load(input + 2 * stride + n), upper = a * gy, lower = a * fy;
    float* weights = &out.weights[n];
    store(weights, upper * gx);
    store(weights + stride, upper * fx);
    store(weights + 2 * stride, lower * gx);
    store(weights + 3 * stride, lower * fx);
    store(&out.fraction[n], fx);
    store(&out.fraction[stride + n], fy);
  }
}

// ---- forward ----------------------------------------------------------------------------------------------------

// Rows of V whole vectors; `zeros` stands in for rows outside.
template <typename T, int V>
inline void gather(const T* base, int64_t stride, const T* zeros, const Plan& plan, int n_samples, T* out) {
  Vec upper[V] = {}, lower[V] = {};
  const int32_t* rows = plan.rows.data();
  const float* weights = plan.weights.data();
  for (int n = 0; n < n_samples; ++n) {
    const T* p[4];
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t row = rows[corner * plan.stride + n];
      p[corner] = row >= 0 ? base + row * stride : zeros;
    }
    const float* w = weights + n;
    for (int v = 0; v < V; ++v) {
      upper[v] += load(p[0] + v * kLanes) * w[0];
      lower[v] += load(p[2] + v * kLanes) * w[2 * plan.stride];
      upper[v] += load(p[1] + v * kLanes) * w[plan.stride];
      lower[v] += load(p[3] + v * kLanes) * w[3 * plan.stride];
    }
  }
  for (int v = 0; v < V; ++v) store(out + v * kLanes, upper[v] + lower[v]);
}

// Rows of any length.
template <typename T>
inline void gather_any(const T* base, int64_t stride, const Plan& plan, int64_t channels, float* sum, T* out) {
  std::memset(sum, 0, channels * sizeof(float));
  for (int64_t i = 0; i < 4 * plan.stride; ++i) {
    if (plan.rows[i] < 0) continue;
    const T* __restrict p = base + static_cast<int64_t>(plan.rows[i]) * stride;
    const float w = plan.weights[i];
    for (int64_t c = 0; c < channels; ++c) sum[c] += w * to_float(p[c]);
  }
  for (int64_t c = 0; c < channels; ++c) from_float(sum[c], out + c);
}

template <typename T>
void forward(const Problem& p, const T* value, T* out, int threads) {
  constexpr int64_t kBlock = 64;  // queries of a task: neighbours read the same rows
  const int n_samples = static_cast<int>(p.samples());
  const Levels levels(p);
  const std::vector<T> zeros(p.channels, T(0));
  const int64_t blocks = (p.queries + kBlock - 1) / kBlock, tasks = p.batch * blocks;
  std::vector<Plan> plans(threads, Plan(n_samples));
  std::vector<std::vector<float>> sums(threads, std::vector<float>(p.channels));
  std::atomic<int64_t> next(0);
  auto job = [&](int slot) {
    Plan& scratch = plans[slot];
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      const int64_t b = task / blocks, first = task % blocks * kBlock;
      const int64_t last = first + kBlock < p.queries ? first + kBlock : p.queries;
      for (int64_t h = 0; h < p.heads; ++h) {
        const T* base = value + b * p.value_batch + h * p.value_head;
        for (int64_t q = first; q < last; ++q) {
          plan(p.location(b, q, h), p.weight(b, q, h), levels, n_samples, scratch);
          T* o = out + ((b * p.queries + q) * p.heads + h) * p.channels;
          switch (p.channels) {
            case 16: gather<T, 1>(base, p.value_token, zeros.data(), scratch, n_samples, o); break;
            case 32: gather<T, 2>(base, p.value_token, zeros.data(), scratch, n_samples, o); break;
            case 64: gather<T, 4>(base, p.value_token, zeros.data(), scratch, n_samples, o); break;
            default:
              gather_any<T>(base, p.value_token, scratch, p.channels, sums[slot].data(), o);
          }
        }
      }
    }
  };
  run_threads(threads, job);
}

// ---- backward ---------------------------------------------------------------------------------------------------

// Dot products of the output's gradient with the four rows of every sample, and the rows' own gradient.
// `rows_gradient` is (tokens + 1, channels): its last row takes what falls outside.
template <typename T, int V>
inline void scatter(const T* base, int64_t stride, const T* zeros, Plan& plan, int n_samples, const T* gradient,
                    float* rows_gradient, int64_t tokens) {
  Vec g[V];
  for (int v = 0; v < V; ++v) g[v] = load(gradient + v * kLanes);
  for (int n = 0; n < n_samples; ++n) {
    Vec4 dot[4];
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t row = plan.rows[corner * plan.stride + n];
      const T* p = row >= 0 ? base + row * stride : zeros;
      float* r = rows_gradient + (row >= 0 ? row : tokens) * (V * kLanes);
      const float w = plan.weights[corner * plan.stride + n];
      Vec products = {};
      for (int v = 0; v < V; ++v) {
        products += load(p + v * kLanes) * g[v];
        store(r + v * kLanes, load(r + v * kLanes) + g[v] * w);
      }
      dot[corner] = quarter_sums(products);
    }
    for (int corner = 0; corner < 4; ++corner)
      plan.dots[corner * plan.stride + n] = (dot[corner][0] + dot[corner][1]) + (dot[corner][2] + dot[corner][3]);
  }
}

template <typename T>
inline void scatter_any(const T* base, int64_t stride, Plan& plan, int64_t channels,
                        const T* __restrict gradient, float* rows_gradient) {
  for (int64_t i = 0; i < 4 * plan.stride; ++i) {
    float dot = 0.0f;
    if (plan.rows[i] >= 0) {
      const T* __restrict p = base + static_cast<int64_t>(plan.rows[i]) * stride;
      float* __restrict r = rows_gradient + static_cast<int64_t>(plan.rows[i]) * channels;
      const float w = plan.weights[i];
      for (int64_t c = 0; c < channels; ++c) {
        const float g = to_float(gradient[c]);
        dot += to_float(p[c]) * g;
        r[c] += w * g;
      }
    }
    plan.dots[i] = dot;
  }
}

// Chain rule of the bilinear weights; the gradients of locations and attention weights from the dot products.
inline void finish(const Plan& plan, const float* __restrict weight, const Levels& levels, int n_samples,
                   float* __restrict location_gradient, float* __restrict weight_gradient) {
  const int64_t stride = plan.stride;
  const float* __restrict dots = plan.dots.data();
  const float* __restrict fraction = plan.fraction.data();
  const float* __restrict width = levels.width.data();
  const float* __restrict height = levels.height.data();
  for (int n = 0; n < n_samples; ++n) {
    const float d0 = dots[n], d1 = dots[stride + n], d2 = dots[2 * stride + n], d3 = dots[3 * stride + n];
    const float fx = fraction[n], fy = fraction[stride + n], gx = 1.0f - fx, gy = 1.0f - fy;
    weight_gradient[n] = gy * (gx * d0 + fx * d1) + fy * (gx * d2 + fx * d3);
    location_gradient[2 * n] = weight[n] * width[n] * (gy * (d1 - d0) + fy * (d3 - d2));
    location_gradient[2 * n + 1] = weight[n] * height[n] * (gx * (d2 - d0) + fx * (d3 - d1));
  }
}

template <typename T>
void backward(const Problem& p, const T* value, const T* gradient, T* value_gradient, float* location_gradient,
              float* weight_gradient, int threads) {
  const int n_samples = static_cast<int>(p.samples());
  const Levels levels(p);
  const std::vector<T> zeros(p.channels, T(0));
  const int64_t tasks = p.batch * p.heads, row_floats = (p.tokens + 1) * p.channels;
  if (threads > tasks) threads = static_cast<int>(tasks);
  std::vector<Plan> plans(threads, Plan(n_samples));
  std::vector<std::vector<float>> rows(threads, std::vector<float>(row_floats));
  std::atomic<int64_t> next(0);
  auto job = [&](int slot) {
    Plan& scratch = plans[slot];
    float* rows_gradient = rows[slot].data();
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      const int64_t b = task / p.heads, h = task % p.heads;
      const T* base = value + b * p.value_batch + h * p.value_head;
      std::memset(rows_gradient, 0, row_floats * sizeof(float));
      for (int64_t q = 0; q < p.queries; ++q) {
        const int64_t index = (b * p.queries + q) * p.heads + h;
        const T* g = gradient + index * p.channels;
        const float* weight = p.weight(b, q, h);
        plan(p.location(b, q, h), weight, levels, n_samples, scratch);
        switch (p.channels) {
          case 16: scatter<T, 1>(base, p.value_token, zeros.data(), scratch, n_samples, g, rows_gradient, p.tokens); break;
          case 32: scatter<T, 2>(base, p.value_token, zeros.data(), scratch, n_samples, g, rows_gradient, p.tokens); break;
          case 64: scatter<T, 4>(base, p.value_token, zeros.data(), scratch, n_samples, g, rows_gradient, p.tokens); break;
          default: scatter_any<T>(base, p.value_token, scratch, p.channels, g, rows_gradient);
        }
        finish(scratch, weight, levels, n_samples, location_gradient + 2 * index * n_samples,
               weight_gradient + index * n_samples);
      }
      for (int64_t s = 0; s < p.tokens; ++s) {
        T* out = value_gradient + ((b * p.tokens + s) * p.heads + h) * p.channels;
        const float* r = rows_gradient + s * p.channels;
        for (int64_t c = 0; c < p.channels; ++c) from_float(r[c], out + c);
      }
    }
  };
  run_threads(threads, job);
}

Problem unpack(const int64_t* sizes, const int64_t* spatial_shapes, const int64_t* level_start, const float* locations,
               const float* weights) {
  return {sizes[0],  sizes[1],  sizes[2],  sizes[3],  sizes[4],  sizes[5],  sizes[6],  sizes[7],  sizes[8],  sizes[9],
          sizes[10], sizes[11], sizes[12], sizes[13], sizes[14], sizes[15], spatial_shapes, level_start, locations, weights};
}

}  // namespace

// `sizes` holds the 16 numbers of Problem in order. `is_bf16`: values, outputs and their gradients are bf16, not fp32.
// Both return 0, or 1 where memory ran out (nothing is thrown across the C interface).

EXPORT int gd_ms_deform_attn_forward(const int64_t* sizes, int is_bf16, const void* value, const int64_t* spatial_shapes,
                                     const int64_t* level_start, const float* locations, const float* weights,
                                     void* output, int threads) {
  try {
    const Problem p = unpack(sizes, spatial_shapes, level_start, locations, weights);
    if (is_bf16)
      forward(p, static_cast<const bf16*>(value), static_cast<bf16*>(output), threads);
    else
      forward(p, static_cast<const float*>(value), static_cast<float*>(output), threads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

EXPORT int gd_ms_deform_attn_backward(const int64_t* sizes, int is_bf16, const void* value,
                                      const int64_t* spatial_shapes, const int64_t* level_start, const float* locations,
                                      const float* weights, const void* gradient, void* value_gradient,
                                      float* location_gradient, float* weight_gradient, int threads) {
  try {
    const Problem p = unpack(sizes, spatial_shapes, level_start, locations, weights);
    if (is_bf16)
      backward(p, static_cast<const bf16*>(value), static_cast<const bf16*>(gradient),
               static_cast<bf16*>(value_gradient), location_gradient, weight_gradient, threads);
    else
      backward(p, static_cast<const float*>(value), static_cast<const float*>(gradient),
               static_cast<float*>(value_gradient), location_gradient, weight_gradient, threads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
