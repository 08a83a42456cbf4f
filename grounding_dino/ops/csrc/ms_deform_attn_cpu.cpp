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

// What is equal for all queries: for every sample (level, point), its level's size and first row.
struct Levels {
  std::vector<float> size;  // widths, then heights
  std::vector<int32_t> start;
  explicit Levels(const Problem& p) : size(2 * p.samples()), start(p.samples()) {
    for (int64_t n = 0; n < p.samples(); ++n) {
      const int64_t level = n / p.points;
      size[n] = static_cast<float>(p.spatial_shapes[2 * level + 1]);
      size[p.samples() + n] = static_cast<float>(p.spatial_shapes[2 * level]);
      start[n] = static_cast<int32_t>(p.level_start[level]);
    }
  }
};

// Scratch of one thread. Corners are (top left, top right, bottom left, bottom right), one array of samples each.
struct Plan {
  std::vector<int32_t> rows;   // 4 x samples; -1 where the corner lies outside
  std::vector<float> weights;  // 4 x samples; bilinear times attention weight
  std::vector<float> fraction; // x, then y
  std::vector<float> dots;     // samples x 4; backward
  explicit Plan(int64_t n) : rows(4 * n), weights(4 * n), fraction(2 * n), dots(4 * n) {}
};

inline void plan(const float* __restrict location, const float* __restrict weight, const Levels& levels, int n_samples,
                 Plan& out) {
  const float* __restrict width = levels.size.data();
  const float* __restrict height = width + n_samples;
  const int32_t* __restrict start = levels.start.data();
  int32_t* __restrict rows = out.rows.data();
  float* __restrict weights = out.weights.data();
  float* __restrict fraction = out.fraction.data();
  for (int n = 0; n < n_samples; ++n) {
    const float w = width[n], h = height[n];
    const float x = location[2 * n] * w - 0.5f, y = location[2 * n + 1] * h - 0.5f;
    const bool inside = (x > -1.0f) & (x < w) & (y > -1.0f) & (y < h);  // false for NaN
    const float x_safe = inside ? x : 0.0f, y_safe = inside ? y : 0.0f;
    const float left = std::floor(x_safe), top = std::floor(y_safe);
    const float fx = x_safe - left, fy = y_safe - top;
    const float a = weight[n];
    const int32_t row = start[n] + static_cast<int32_t>(top) * static_cast<int32_t>(w) + static_cast<int32_t>(left);
    const bool has_left = inside & (left >= 0.0f), has_right = inside & (left + 1.0f < w);
    const bool has_top = top >= 0.0f, has_bottom = top + 1.0f < h;
    rows[n] = (has_top & has_left) ? row : -1;
    rows[n_samples + n] = (has_top & has_right) ? row + 1 : -1;
    rows[2 * n_samples + n] = (has_bottom & has_left) ? row + static_cast<int32_t>(w) : -1;
    rows[3 * n_samples + n] = (has_bottom & has_right) ? row + static_cast<int32_t>(w) + 1 : -1;
    weights[n] = a * (1.0f - fy) * (1.0f - fx);
    weights[n_samples + n] = a * (1.0f - fy) * fx;
    weights[2 * n_samples + n] = a * fy * (1.0f - fx);
    weights[3 * n_samples + n] = a * fy * fx;
    fraction[n] = fx;
    fraction[n_samples + n] = fy;
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
    for (int corner = 0; corner < 4; ++corner) {
      const int32_t row = rows[corner * n_samples + n];
      const T* p = row >= 0 ? base + row * stride : zeros;
      const float w = weights[corner * n_samples + n];
      Vec* sum = corner < 2 ? upper : lower;
      for (int v = 0; v < V; ++v) sum[v] += load(p + v * kLanes) * w;
    }
  }
  for (int v = 0; v < V; ++v) store(out + v * kLanes, upper[v] + lower[v]);
}

// Rows of any length.
template <typename T>
inline void gather_any(const T* base, int64_t stride, const Plan& plan, int n_samples, int64_t channels, float* sum,
                       T* out) {
  std::memset(sum, 0, channels * sizeof(float));
  for (int i = 0; i < 4 * n_samples; ++i) {
    if (plan.rows[i] < 0) continue;
    const T* __restrict p = base + plan.rows[i] * stride;
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
              gather_any<T>(base, p.value_token, scratch, n_samples, p.channels, sums[slot].data(), o);
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
      const int32_t row = plan.rows[corner * n_samples + n];
      const T* p = row >= 0 ? base + row * stride : zeros;
      float* r = rows_gradient + (row >= 0 ? row : tokens) * (V * kLanes);
      const float w = plan.weights[corner * n_samples + n];
      Vec products = {};
      for (int v = 0; v < V; ++v) {
        products += load(p + v * kLanes) * g[v];
        store(r + v * kLanes, load(r + v * kLanes) + g[v] * w);
      }
      dot[corner] = quarter_sums(products);
    }
    for (int corner = 0; corner < 4; ++corner)
      plan.dots[4 * n + corner] = (dot[corner][0] + dot[corner][1]) + (dot[corner][2] + dot[corner][3]);
  }
}

template <typename T>
inline void scatter_any(const T* base, int64_t stride, Plan& plan, int n_samples, int64_t channels,
                        const T* __restrict gradient, float* rows_gradient) {
  for (int i = 0; i < 4 * n_samples; ++i) {
    float dot = 0.0f;
    if (plan.rows[i] >= 0) {
      const T* __restrict p = base + plan.rows[i] * stride;
      float* __restrict r = rows_gradient + plan.rows[i] * channels;
      const float w = plan.weights[i];
      for (int64_t c = 0; c < channels; ++c) {
        const float g = to_float(gradient[c]);
        dot += to_float(p[c]) * g;
        r[c] += w * g;
      }
    }
    plan.dots[4 * (i % n_samples) + i / n_samples] = dot;
  }
}

// Chain rule of the bilinear weights; the gradients of locations and attention weights from the dot products.
inline void finish(const Plan& plan, const float* __restrict weight, const Levels& levels, int n_samples,
                   float* __restrict location_gradient, float* __restrict weight_gradient) {
  const float* __restrict dots = plan.dots.data();
  const float* __restrict fraction = plan.fraction.data();
  const float* __restrict size = levels.size.data();
  for (int n = 0; n < n_samples; ++n) {
    const float d0 = dots[4 * n], d1 = dots[4 * n + 1], d2 = dots[4 * n + 2], d3 = dots[4 * n + 3];
    const float fx = fraction[n], fy = fraction[n_samples + n], gx = 1.0f - fx, gy = 1.0f - fy;
    weight_gradient[n] = gy * (gx * d0 + fx * d1) + fy * (gx * d2 + fx * d3);
    location_gradient[2 * n] = weight[n] * size[n] * (gy * (d1 - d0) + fy * (d3 - d2));
    location_gradient[2 * n + 1] = weight[n] * size[n_samples + n] * (gx * (d2 - d0) + fx * (d3 - d1));
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
          default: scatter_any<T>(base, p.value_token, scratch, n_samples, p.channels, g, rows_gradient);
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
