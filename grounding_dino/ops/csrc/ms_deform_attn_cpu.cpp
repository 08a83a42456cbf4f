// Multi-scale deformable attention for CPUs, forward and backward, fp32 and bf16 values, fp32 arithmetic.
//
// A plain C interface (pointers, sizes, strides, a thread count): no torch headers, so it builds in seconds and
// survives torch upgrades. The Python side has checked shapes, dtypes and that every level lies inside the values.
//
// The values of a head are first packed: rows one after the other (at a stride of heads x channels most of a cache's
// sets would stay empty), padded to whole vectors, and a row of zeros at the end that stands in for all that is
// outside. Then each (query, head) takes two steps: plan() turns its points into rows and weights, many points at a
// time, and the rows are read with whole-row vectors. Backward gives each (picture, head) to one thread, which adds up
// the gradient of the values in query order: results depend neither on the number of threads nor on their timing.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "cpu_support.h"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

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
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// What is equal for all queries: for every sample, its level's size and first row.
struct Levels {
  std::vector<float> width, height;
  std::vector<int32_t> row_length, start;
  explicit Levels(const Problem& p) {
    const int64_t n = round_up(p.samples(), kLanes);
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
  std::vector<int32_t> rows;     // 4 arrays; the row of zeros where the corner lies outside
  std::vector<float> weights;    // 4 arrays; bilinear times attention weight
  std::vector<float> fraction;   // x, then y
  std::vector<float> dots;       // 4 arrays; backward
  std::vector<float> input;      // x, y, attention weight; padded with zeros
  explicit Plan(int64_t samples)
      : stride(round_up(samples, kLanes)), rows(4 * stride), weights(4 * stride), fraction(2 * stride), dots(4 * stride),
        input(3 * stride) {}
};

inline Vec floor_of(Vec x, VecI32* integer) {  // for |x| < 2^31
  const VecI32 truncated = __builtin_convertvector(x, VecI32);
  *integer = truncated + (__builtin_convertvector(truncated, Vec) > x);  // a true lane is -1
  return __builtin_convertvector(*integer, Vec);
}

inline void plan(const float* __restrict location, const float* __restrict weight, const Levels& levels, int n_samples,
                 int32_t zero_row, Plan& out) {
  const VecI32 none = VecI32{} + zero_row;
  const int64_t stride = out.stride;
  float* __restrict input = out.input.data();
  for (int n = 0; n < n_samples; ++n) {
    input[n] = location[2 * n];
    input[stride + n] = location[2 * n + 1];
    input[2 * stride + n] = weight[n];
  }
  for (int64_t n = 0; n < stride; n += kLanes) {
    const Vec w = read<Vec>(&levels.width[n]), h = read<Vec>(&levels.height[n]);
    const Vec x_any = read<Vec>(input + n) * w - 0.5f, y_any = read<Vec>(input + stride + n) * h - 0.5f;
    const VecI32 inside = (x_any > -1.0f) & (x_any < w) & (y_any > -1.0f) & (y_any < h);  // false for NaN
    const Vec x = inside ? x_any : Vec{}, y = inside ? y_any : Vec{};
    VecI32 column, line;
    const Vec left = floor_of(x, &column), top = floor_of(y, &line);
    const Vec fx = x - left, fy = y - top, gx = 1.0f - fx, gy = 1.0f - fy;
    const VecI32 row_length = read<VecI32>(&levels.row_length[n]);
    const VecI32 row = read<VecI32>(&levels.start[n]) + line * row_length + column;
    const VecI32 at_left = inside & (left >= 0.0f), at_right = inside & (left + 1.0f < w);
    const VecI32 at_top = top >= 0.0f, at_bottom = top + 1.0f < h;
    int32_t* rows = &out.rows[n];
    write(rows, (at_top & at_left) ? row : none);
    write(rows + stride, (at_top & at_right) ? row + 1 : none);
    write(rows + 2 * stride, (at_bottom & at_left) ? row + row_length : none);
    write(rows + 3 * stride, (at_bottom & at_right) ? row + row_length + 1 : none);
    const Vec a = read<Vec>(input + 2 * stride + n), upper = a * gy, lower = a * fy;
    float* weights = &out.weights[n];
    write(weights, upper * gx);
    write(weights + stride, upper * fx);
    write(weights + 2 * stride, lower * gx);
    write(weights + 3 * stride, lower * fx);
    write(&out.fraction[n], fx);
    write(&out.fraction[stride + n], fy);
  }
}

// ---- packed values ----------------------------------------------------------------------------------------------

template <typename T>
int64_t packed_channels(const Problem& p) {
  return round_up(p.channels, kUnit<T>);
}

// Rows [first, last) of a head; row `tokens` is the one of zeros.
template <typename T>
void pack(const Problem& p, const T* head, int64_t first, int64_t last, T* packed) {
  const int64_t width = packed_channels<T>(p);
  for (int64_t s = first; s < last; ++s) {
    const int64_t used = s < p.tokens ? p.channels : 0;
    std::memcpy(packed + s * width, head + s * p.value_token, used * sizeof(T));
    std::memset(packed + s * width + used, 0, (width - used) * sizeof(T));
  }
}

// Calls step(vectors, first channel) for a row's parts, `vectors` being a compile-time constant.
template <typename T, typename Step>
inline void for_parts(int64_t width, Step&& step) {
  int64_t first = 0;
  for (; width - first >= kMaxVectors * kLanes; first += kMaxVectors * kLanes)
    step(std::integral_constant<int, kMaxVectors>(), first);
  const int64_t rest = (width - first) / kLanes;
  if constexpr (kUnit<T> == kLanes) {
    if (rest == 3) step(std::integral_constant<int, 3>(), first);
    if (rest == 1) step(std::integral_constant<int, 1>(), first);
  }
  if (rest == 2) step(std::integral_constant<int, 2>(), first);
}

// ---- forward ----------------------------------------------------------------------------------------------------

template <int V, typename T>
inline void gather(const T* rows, int64_t width, const Plan& plan, int n_samples, int64_t channels, T* out) {
  Vec upper[V] = {}, lower[V] = {};  // two chains of additions
  const int32_t* row = plan.rows.data();
  const float* weight = plan.weights.data();
  for (int n = 0; n < n_samples; ++n) {
    for (int corner = 0; corner < 4; ++corner) {
      Vec part[V];
      load<V>(rows + row[corner * plan.stride + n] * width, part);
      const float w = weight[corner * plan.stride + n];
      for (int v = 0; v < V; ++v) (corner % 2 ? lower : upper)[v] += part[v] * w;
    }
  }
  for (int v = 0; v < V; ++v) upper[v] += lower[v];
  save_some<V>(upper, channels, out);
}

template <typename T>
void forward(const Problem& p, const T* value, T* out, int threads) {
  constexpr int64_t kQueries = 256, kTokens = 1024;  // of a task, where several threads share a head
  const int n_samples = static_cast<int>(p.samples());
  const Levels levels(p);
  const int64_t width = packed_channels<T>(p), head_size = (p.tokens + 1) * width;
  std::vector<Plan> plans(threads, Plan(n_samples));
  const Workspace workspace(threads * head_size * sizeof(T));
  T* packed = static_cast<T*>(workspace.data());

  const auto pack_tokens = [&](int64_t b, int64_t h, int64_t first, int64_t last, T* rows) {
    pack(p, value + b * p.value_batch + h * p.value_head, first, std::min(last, p.tokens + 1), rows);
  };
  const auto sample = [&](int slot, int64_t b, int64_t h, int64_t first, int64_t last, const T* rows) {
    for (int64_t q = first; q < std::min(last, p.queries); ++q) {
      plan(p.location(b, q, h), p.weight(b, q, h), levels, n_samples, static_cast<int32_t>(p.tokens), plans[slot]);
      T* o = out + ((b * p.queries + q) * p.heads + h) * p.channels;
      for_parts<T>(width, [&](auto vectors, int64_t c) {
        gather<vectors.value>(rows + c, width, plans[slot], n_samples, p.channels - c, o + c);
      });
    }
  };

  if (p.batch * p.heads >= 4 * threads) {  // each head to one thread: no waiting for each other
    run_tasks(threads, p.batch * p.heads, [&](int slot, int64_t task) {
      const int64_t b = task / p.heads, h = task % p.heads;
      T* rows = packed + slot * head_size;
      pack_tokens(b, h, 0, p.tokens + 1, rows);
      sample(slot, b, h, 0, p.queries, rows);
    });
    return;
  }
  const int64_t query_blocks = (p.queries + kQueries - 1) / kQueries, token_blocks = p.tokens / kTokens + 1;
  for (int64_t first_head = 0; first_head < p.batch * p.heads; first_head += threads) {
    const int64_t heads = std::min<int64_t>(threads, p.batch * p.heads - first_head);
    run_tasks(threads, heads * token_blocks, [&](int, int64_t task) {
      const int64_t head = task / token_blocks, b = (first_head + head) / p.heads, h = (first_head + head) % p.heads;
      const int64_t first = task % token_blocks * kTokens;
      pack_tokens(b, h, first, first + kTokens, packed + head * head_size);
    });
    run_tasks(threads, heads * query_blocks, [&](int slot, int64_t task) {
      const int64_t head = task / query_blocks, b = (first_head + head) / p.heads, h = (first_head + head) % p.heads;
      const int64_t first = task % query_blocks * kQueries;
      sample(slot, b, h, first, first + kQueries, packed + head * head_size);
    });
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------

// Adds to the dot products of the output's gradient with the four rows of every sample, and to the rows' gradients.
template <int V, typename T>
inline void scatter(const T* rows, int64_t width, Plan& plan, int n_samples, int64_t channels, const T* gradient,
                    float* rows_gradient) {
  Vec g[V];
  load_some<V>(gradient, channels, g);
  for (int n = 0; n < n_samples; ++n) {
    Vec4 dot[4];
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t offset = plan.rows[corner * plan.stride + n] * width;
      const float w = plan.weights[corner * plan.stride + n];
      Vec part[V], products = {};
      load<V>(rows + offset, part);
      float* r = rows_gradient + offset;
      for (int v = 0; v < V; ++v) {
        products += part[v] * g[v];
        write(r + v * kLanes, read<Vec>(r + v * kLanes) + g[v] * w);
      }
      dot[corner] = quarter_sums(products);
    }
    for (int corner = 0; corner < 4; ++corner)
      plan.dots[corner * plan.stride + n] += (dot[corner][0] + dot[corner][1]) + (dot[corner][2] + dot[corner][3]);
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
  const int64_t tasks = p.batch * p.heads, width = packed_channels<T>(p), head_size = (p.tokens + 1) * width;
  threads = static_cast<int>(std::min<int64_t>(threads, tasks));
  std::vector<Plan> plans(threads, Plan(n_samples));
  const Workspace workspace(threads * head_size * (sizeof(float) + sizeof(T)));
  float* sums = static_cast<float*>(workspace.data());
  T* packed = reinterpret_cast<T*>(sums + threads * head_size);
  run_tasks(threads, tasks, [&](int slot, int64_t task) {
    const int64_t b = task / p.heads, h = task % p.heads;
    Plan& scratch = plans[slot];
    T* rows = packed + slot * head_size;
    float* rows_gradient = sums + slot * head_size;
    pack(p, value + b * p.value_batch + h * p.value_head, 0, p.tokens + 1, rows);
    std::memset(rows_gradient, 0, head_size * sizeof(float));
    for (int64_t q = 0; q < p.queries; ++q) {
      const int64_t index = (b * p.queries + q) * p.heads + h;
      const T* g = gradient + index * p.channels;
      const float* weight = p.weight(b, q, h);
      plan(p.location(b, q, h), weight, levels, n_samples, static_cast<int32_t>(p.tokens), scratch);
      std::fill(scratch.dots.begin(), scratch.dots.end(), 0.0f);
      for_parts<T>(width, [&](auto vectors, int64_t c) {
        scatter<vectors.value>(rows + c, width, scratch, n_samples, p.channels - c, g + c, rows_gradient + c);
      });
      finish(scratch, weight, levels, n_samples, location_gradient + 2 * index * n_samples,
             weight_gradient + index * n_samples);
    }
    for (int64_t s = 0; s < p.tokens; ++s) {
      T* out = value_gradient + ((b * p.tokens + s) * p.heads + h) * p.channels;
      for_parts<T>(width, [&](auto vectors, int64_t c) {
        Vec sum[vectors.value];
        load<vectors.value>(rows_gradient + s * width + c, sum);
        save_some<vectors.value>(sum, p.channels - c, out + c);
      });
    }
  });
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
