// One student's SGD step. Its weights stay where they are for all its steps; a batch goes through in parts of at most
// `part_samples`, whose activations fit in the first-level cache (fastspec/ops/two_layer_sgd/README.md).
#pragma once

#include "arena.h"
#include "products.h"

namespace fastspec {
namespace FASTSPEC_ISA {

constexpr int64_t part_samples = 64;

// Blocks of rows, fastest as measured where there are 32 registers. Tall ones where columns are samples, of which 16
// are one vector or two: many rows keep the units busy. Flat ones where they are weights: rows and vectors together.
template <typename T>
struct Blocks {
  static constexpr bool wide = FASTSPEC_VECTOR_BYTES == 64, single = sizeof(T) == sizeof(float);
  static constexpr int tall = !wide ? 6 : single ? 10 : 8;
  static constexpr int flat = wide && !single ? 8 : 6, vectors = !wide ? 2 : single ? 4 : 3;
};

template <typename T>
inline int64_t whole_vectors(int64_t count) {
  return ceil_div(count, Simd<T>::lanes) * Simd<T>::lanes;
}

struct Sizes {
  int64_t inputs, outputs;    // d, C
  int64_t fan_in, fan_out;    // d + 1 and C, to whole vectors
  int64_t batch, part, wide;  // samples of a batch, of its largest part, the same to whole vectors
};

// Weights of a network, or what is added to them; columns and rows beyond its own are zero.
template <typename T>
struct Network {
  T* first;  // [n, fan_in], column d the bias
  T* top;    // [n + 1, fan_out], row n the bias
};

// One part of a batch.
template <typename T>
struct Activations {
  T* x;           // [part, fan_in], column d is 1, or 0 without biases
  T* x_t;         // [fan_in, wide]
  T* residual;    // [part, fan_out]; the targets before the forward pass
  T* residual_t;  // [fan_out, wide]
  T* hidden;      // [n, wide]
  T* gradient;    // [tall block, wide]
};

template <typename T>
struct StepRule {
  T momentum, weight_decay, slope, limit;
  bool bias, normalize, train_first, train_top;
};

// hidden = leaky_relu(first x), from x_t.
template <typename T>
inline void hidden_layer(const Sizes& s, const Network<T>& w, int64_t nodes, const Activations<T>& a, int64_t samples,
                         T slope, bool bias) {
  by_rows<Blocks<T>::tall>(nodes, [&](auto rows, int64_t j) FASTSPEC_INLINE {
    const int64_t wide = s.wide;
    T* const hidden = a.hidden + j * wide;
    block_product<decltype(rows)::of, Lie::apart>(w.first + j * s.fan_in, s.fan_in, a.x_t, wide, s.inputs + bias,
                                                  samples, [=](auto v, int r, int64_t c, auto z) FASTSPEC_INLINE {
                                                    const auto low = slope * z;
                                                    v.store(hidden + r * wide + c, low > z ? low : z);  // NaN stays NaN
                                                  });
  });
}

// store(vectors, sample, column, sums) receives hidden * top, without the bias.
template <typename T, typename Store>
inline void top_layer(const Sizes& s, const Network<T>& w, int64_t nodes, const Activations<T>& a, int64_t samples,
                      const Store& store) {
  by_rows<Blocks<T>::flat>(samples, [&](auto rows, int64_t b) FASTSPEC_INLINE {
    block_product<decltype(rows)::of, Lie::adjacent, Blocks<T>::vectors>(
        a.hidden + b, s.wide, w.top, s.fan_out, nodes, s.outputs,
        [=](auto v, int r, int64_t c, auto sums) FASTSPEC_INLINE { store(v, b + r, c, sums); });
  });
}

// out[c, b] = each(b, c, in[b, c]), vectors of columns at a time; samples beyond the part are zero.
template <typename T, typename Each>
inline void transpose_part(const T* in, int64_t columns, int64_t samples, T* out, int64_t wide, const Each& each) {
  using S = Simd<T>;
  for (int64_t b = 0; b < samples; b += S::lanes) {
    const int64_t rows = samples - b < S::lanes ? samples - b : S::lanes;
    for (int64_t c = 0; c < columns; c += S::lanes) {
      const auto load = [&](int i) { return each(b + i, c, S::load(in + (b + i) * columns + c)); };
      typename S::Vector row[S::lanes];
      if (rows == S::lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < S::lanes; ++i) row[i] = load(i);
      } else {
        for (int i = 0; i < S::lanes; ++i) row[i] = i < rows ? load(i) : typename S::Vector{};
      }
      transpose<T>(row);
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i) S::store(out + (c + i) * wide + b, row[i]);
    }
  }
}

// Divides a node's weights by their norm; a row of zeros stays. With a bias, column `inputs` is that, and is left out.
template <typename T>
inline void normalize_row(T* row, int64_t inputs, int64_t whole, bool bias) {
  using S = Simd<T>;
  T* const last = bias ? row + inputs : nullptr;
  const T kept = bias ? *last : T(0);
  if (bias) *last = 0;
  typename S::Vector squares = {};
  for (int64_t c = 0; c < whole; c += S::lanes) squares += S::load(row + c) * S::load(row + c);
  T square = 0;
  for (int i = 0; i < S::lanes; ++i) square += squares[i];
  if (square != 0) {
    const T norm = sizeof(T) == sizeof(float) ? __builtin_sqrtf(square) : __builtin_sqrt(square);
    for (int64_t c = 0; c < whole; c += S::lanes) S::store(row + c, S::load(row + c) / norm);
  }
  if (bias) *last = kept;
}

template <typename T>
class Student {
  using S = Simd<T>;
  using V = typename S::Vector;

  // How a sum of gradients, scaled, changes the weights: at once, or by way of `sums`, which are the momentum buffers
  // or collect the parts of a batch.
  struct Update {
    T eta, decay, momentum, weight_decay;
    bool first_part, last_part;
  };

  const Sizes& sizes_;
  const StepRule<T>& rule_;
  const Activations<T>& part_;

  // Not inlined: there are many tiles, and this is long.
  template <typename W, typename Sums>
  __attribute__((noinline)) static void collect(W v, T* weight, T* sum, Sums gradient, const Update& u) {
    const Sums w = v.load(weight);
    if (!u.first_part) {
      gradient += v.load(sum);
    } else if (u.momentum != 0) {
      gradient += u.momentum * v.load(sum) - u.weight_decay * w;
    }
    v.store(sum, gradient);
    if (!u.last_part) return;
    v.store(weight, u.momentum != 0 ? w + u.eta * gradient : u.decay * w + gradient);
  }

  template <bool at_once, typename W, typename Sums>
  FASTSPEC_INLINE static void change(W v, T* weight, T* sum, Sums gradient, const Update& u) {
    if constexpr (at_once) {
      v.store(weight, u.decay * v.load(weight) + gradient);
    } else {
      collect(v, weight, sum, gradient, u);
    }
  }

  // Residuals from targets, scaled by `scale`, and their transpose; the sum of their squares before scaling.
  template <typename Batch>
  double residuals(int64_t samples, T scale, Batch& batch) const {
    const Sizes& s = sizes_;
    const Activations<T>& a = part_;
    const int64_t fan = s.fan_out;
    const T* const bias = weights.top + nodes * fan;
    T* const residual = a.residual;
    top_layer(s, weights, nodes, a, samples, [=](auto v, int64_t b, int64_t c, auto sums) FASTSPEC_INLINE {
      T* const at = residual + b * fan + c;
      v.store(at, v.load(at) - (v.load(bias + c) + sums));
    });
    V squares = {};
    transpose_part(a.residual, s.fan_out, samples, a.residual_t, s.wide, [&](int64_t b, int64_t c, V r) {
      if (b % S::lanes == 0) batch.ask(), batch.ask();  // students of few nodes have few other places
      squares += r * r;
      r *= scale;
      S::store(a.residual + b * s.fan_out + c, r);
      return r;
    });
    double sum = 0;
    for (int i = 0; i < S::lanes; ++i) sum += squares[i];
    return sum;
  }

  // The negative gradients of a block of hidden nodes, without the input.
  template <int rows>
  void backward(int64_t j, int64_t samples) const {
    const int64_t wide = sizes_.wide, fan = sizes_.fan_out;
    const T* const hidden = part_.hidden + j * wide;
    T* const gradient = part_.gradient;
    const T slope = rule_.slope;
    block_product<rows, Lie::apart>(weights.top + j * fan, fan, part_.residual_t, wide, sizes_.outputs, samples,
                                    [=](auto v, int r, int64_t c, auto g) FASTSPEC_INLINE {
                                      const auto on = v.load(hidden + r * wide + c) > 0;
                                      v.store(gradient + r * wide + c, on ? g : slope * g);
                                    });
  }

  // Rows of weights change by the sum over samples of left[r, sample] right[sample, c].
  template <bool at_once, int rows>
  FASTSPEC_INLINE void change_rows(const T* left, const T* right, int64_t samples, int64_t fan, int64_t columns,
                                   T* weight, T* sum, Update u) const {
    block_product<rows, Lie::apart, Blocks<T>::vectors>(
        left, sizes_.wide, right, fan, samples, columns, [=](auto v, int r, int64_t c, auto gradient) FASTSPEC_INLINE {
          change<at_once>(v, weight + r * fan + c, sum + r * fan + c, gradient, u);
        });
  }

  // A block of nodes, whose gradients are given.
  template <bool at_once, int rows>
  void change_nodes(int64_t j, const T* gradient, int64_t samples, const Update& u) const {
    const Sizes& s = sizes_;
    if (rule_.train_top) {
      const int64_t at = j * s.fan_out;
      change_rows<at_once, rows>(part_.hidden + j * s.wide, part_.residual, samples, s.fan_out, s.outputs,
                                 weights.top + at, sums.top + at, u);
    }
    if (!rule_.train_first) return;
    T* const first = weights.first + j * s.fan_in;
    change_rows<at_once, rows>(gradient, part_.x, samples, s.fan_in, s.inputs + rule_.bias, first,
                               sums.first + j * s.fan_in, u);
    if (rule_.normalize && u.last_part) {
      for (int r = 0; r < rows; ++r) normalize_row(first + r * s.fan_in, s.inputs, s.fan_in, true);
    }
  }

  // Backward pass and update, block by block, whose weights are read and written while they are near.
  template <bool at_once, typename Batch>
  void update(int64_t samples, const Update& u, Batch& batch) const {
    by_rows<Blocks<T>::tall>(nodes, [&](auto tall, int64_t j) {
      batch.ask();
      if (rule_.train_first) backward<decltype(tall)::of>(j, samples);
      by_rows<Blocks<T>::flat>(tall.of, [&](auto flat, int64_t at) {
        batch.ask();
        change_nodes<at_once, decltype(flat)::of>(j + at, part_.gradient + at * sizes_.wide, samples, u);
      });
    });
    if (rule_.bias && rule_.train_top) change_top_bias<at_once>(samples, u);
  }

  template <bool at_once>
  void change_top_bias(int64_t samples, const Update& u) const {
    const int64_t row = nodes * sizes_.fan_out;
    for (int64_t c = 0; c < sizes_.fan_out; c += S::lanes) {
      const T* const at = part_.residual + c;
      V sum[4] = {};  // one chain of additions would be waited for
      for (int64_t b = 0; b < samples; b += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          if (b + i < samples) sum[i] += S::load(at + (b + i) * sizes_.fan_out);
        }
      }
      change<at_once>(S{}, weights.top + row + c, sums.top + row + c, (sum[0] + sum[1]) + (sum[2] + sum[3]), u);
    }
  }

 public:
  Network<T> weights, sums;
  int64_t nodes;

  Student(const Sizes& sizes, const StepRule<T>& rule, const Activations<T>& part, const Network<T>& w,
          const Network<T>& collected, int64_t n)
      : sizes_(sizes), rule_(rule), part_(part), weights(w), sums(collected), nodes(n) {}

  // One step at rate eta. `batch.inputs(first, samples)` fills x with a part of the batch, `batch.targets` what should
  // come out; `batch.ask()` is called here and there, so that it may fetch a little of what the next step needs. False,
  // with the weights as they were, when the batch loss is beyond the limit or not finite.
  template <typename Batch>
  bool step(T eta, Batch& batch) const {
    const Sizes& s = sizes_;
    const bool momentum = rule_.momentum != 0;
    const T scale = (momentum ? T(1) : eta) / T(s.batch);
    const bool at_once = !momentum && s.batch <= s.part;
    Update u{eta, T(1) - eta * rule_.weight_decay, rule_.momentum, rule_.weight_decay, false, false};
    double loss = 0;
    for (int64_t first = 0; first < s.batch; first += s.part) {
      const int64_t samples = s.batch - first < s.part ? s.batch - first : s.part;
      u.first_part = first == 0, u.last_part = first + samples == s.batch;
      batch.inputs(first, samples);
      transpose_part(part_.x, s.fan_in, samples, part_.x_t, s.wide, [&](int64_t b, int64_t, V row) {
        if (b % S::lanes == 0) batch.ask();
        return row;
      });
      batch.targets(first, samples);
      hidden_layer(s, weights, nodes, part_, samples, rule_.slope, rule_.bias);
      loss += residuals(samples, scale, batch);
      if (u.last_part && !(loss / (2 * double(s.batch)) <= double(rule_.limit))) return false;
      at_once ? update<true>(samples, u, batch) : update<false>(samples, u, batch);
    }
    return true;
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
