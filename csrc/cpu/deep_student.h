// One deep student's SGD step, by a team of cores. Activations lie node by node, [nodes, samples], for the products
// that go up and down the layers, and once more sample by sample for the products that change the weights
// (fastspec/ops/mlp_sgd_step/README.md).
#pragma once

#include "arena.h"
#include "products.h"
#include "student.h"
#include "team.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// Of a product, as many columns and terms of its sums at a time as leave what is read as vectors in the second-level
// cache.
constexpr int64_t column_chunk = 256, depth_chunk = 512;

// A layer: its sizes, its weights, and what a batch leaves of it.
template <typename T>
struct DeepLayer {
  int64_t in, out, fan;  // fan: inputs and bias, to whole vectors
  bool bias;
  T *weight, *sums;     // [out, fan], column `in` the bias; the momentum buffers, or null
  T *below, *below_t;   // [fan, wide] the layer's inputs, row `in` is 1 with a bias; the same as [wide, fan]
  T *above, *gradient;  // [out, wide] its outputs, and the gradient with respect to its pre-activations
  double* square;       // [out], of the gradient with respect to each node's weights; or null
};

// A student at work.
template <typename T>
struct DeepWork {
  DeepLayer<T>* layer;
  int64_t layers, batch, wide, outputs;  // wide: batch to whole vectors
  T *y, *y_t;                            // answers [wide, outputs to whole vectors], and transposed
  int64_t* label;                        // [batch], in their place; or null
  double* loss;                          // [wide], of each sample
};

template <typename T>
struct DeepRules {
  T momentum, weight_decay, slope;
  double limit;
  bool normalize;
};

// finish(vectors, row, column, sums) receives sum over k of a(r, k) b[k, c] for a range of rows. Where there are more
// terms than `chunk`, sums are put together in out[r, c].
template <Lie lie, typename T, typename Finish>
inline void chunked_product(const T* a, int64_t stride, const T* b, int64_t b_stride, int64_t depth, int64_t chunk,
                            Range range, int64_t columns, T* out, int64_t out_stride, const Finish& finish) {
  for (int64_t column = 0; column < columns; column += column_chunk) {
    const int64_t width = columns - column < column_chunk ? columns - column : column_chunk;
    for (int64_t k = 0; k < depth; k += chunk) {
      const int64_t terms = depth - k < chunk ? depth - k : chunk;
      by_rows(range.count, [&](auto rows, int64_t at) {
        const int64_t row = range.first + at;
        const T* const left = lie == Lie::apart ? a + row * stride + k : a + k * stride + row;
        block_product<decltype(rows)::of, lie>(left, stride, b + k * b_stride + column, b_stride, terms, width,
                                               [&](auto v, int r, int64_t c, auto sums) {
                                                 T* const partial = out + (row + r) * out_stride + column + c;
                                                 if (k > 0) sums += v.load(partial);
                                                 if (k + chunk < depth) return v.store(partial, sums);
                                                 finish(v, row + r, column + c, sums);
                                               });
      });
    }
  }
}

// What one core of a team does of a student's step; `work` is the team's.
template <typename T>
class DeepStudent {
  using S = Simd<T>;
  using V = typename S::Vector;

  const DeepWork<T>& w_;
  const DeepRules<T>& rules_;
  const Member& me_;

  void forward(const DeepLayer<T>& layer, T slope) const {
    const int64_t wide = w_.wide;
    chunked_product<Lie::apart>(layer.weight, layer.fan, layer.below, wide, layer.in + layer.bias, depth_chunk,
                                me_.share(layer.out), w_.batch, layer.above, wide,
                                [&](auto v, int64_t j, int64_t b, auto z) {
                                  const auto low = slope * z;
                                  v.store(layer.above + j * wide + b, low > z ? low : z);  // NaN stays NaN
                                });
  }

  // The gradient with respect to the pre-activations of the layer below.
  void backward(const DeepLayer<T>& layer, const DeepLayer<T>& lower) const {
    const int64_t wide = w_.wide;
    chunked_product<Lie::adjacent>(layer.weight, layer.fan, layer.gradient, wide, layer.out, depth_chunk,
                                   me_.share(layer.in), w_.batch, lower.gradient, wide,
                                   [&](auto v, int64_t k, int64_t b, auto g) {
                                     const auto on = v.load(lower.above + k * wide + b) > 0;
                                     v.store(lower.gradient + k * wide + b, on ? g : rules_.slope * g);
                                   });
  }

  // Changes the weights by the gradient, which is nowhere written.
  void change(const DeepLayer<T>& layer, T eta, bool hidden) const {
    const T scale = T(1) / T(w_.batch), decay = T(1) - eta * rules_.weight_decay, rate = eta * scale;
    const bool momentum = rules_.momentum != 0;
    const Range mine = me_.share(layer.out);
    for (int64_t j = mine.first; layer.square && j < mine.first + mine.count; ++j) layer.square[j] = 0;
    chunked_product<Lie::apart>(
        layer.gradient, w_.wide, layer.below_t, layer.fan, w_.batch, w_.batch, mine, layer.in + layer.bias,
        layer.weight, layer.fan, [&](auto v, int64_t j, int64_t c, auto g) {
          T* const weight = layer.weight + j * layer.fan + c;
          if (layer.square) {
            const auto mean = scale * g;
            for (int i = 0; i < v.lanes; ++i) layer.square[j] += double(mean[i]) * double(mean[i]);
          }
          if (!momentum) return v.store(weight, decay * v.load(weight) - rate * g);
          T* const sum = layer.sums + j * layer.fan + c;
          const auto ahead = rules_.momentum * v.load(sum) + (scale * g + rules_.weight_decay * v.load(weight));
          v.store(sum, ahead);
          v.store(weight, v.load(weight) - eta * ahead);
        });
    if (!rules_.normalize || !hidden) return;
    for (int64_t j = mine.first; j < mine.first + mine.count; ++j) {
      normalize_row(layer.weight + j * layer.fan, layer.in, layer.fan, layer.bias);
    }
  }

  static V same(int64_t, int64_t, V row) { return row; }

  // Lanes of the samples from `first` on that there are.
  typename S::Mask present(int64_t first) const {
    typename S::Mask mask;
    for (int i = 0; i < S::lanes; ++i) mask[i] = first + i < w_.batch ? -1 : 0;
    return mask;
  }

  // The gradient with respect to the outputs of some samples, and their losses.
  void squares(int64_t first) const {
    const DeepLayer<T>& top = w_.layer[w_.layers - 1];
    const auto here = present(first);
    V sum = {};
    for (int64_t c = 0; c < w_.outputs; ++c) {
      V r = S::load(top.above + c * w_.wide + first) - S::load(w_.y_t + c * w_.wide + first);
      r = here ? r : V{};
      S::store(top.gradient + c * w_.wide + first, r);
      sum += r * r;
    }
    for (int i = 0; i < S::lanes; ++i) w_.loss[first + i] = double(sum[i]) / 2;
  }

  void entropies(int64_t first) const {
    const DeepLayer<T>& top = w_.layer[w_.layers - 1];
    const int64_t wide = w_.wide;
    const auto here = present(first);
    V largest = S::load(top.above + first), sum = {};
    for (int64_t c = 1; c < w_.outputs; ++c) {
      const V z = S::load(top.above + c * wide + first);
      largest = z > largest ? z : largest;
    }
    for (int64_t c = 0; c < w_.outputs; ++c) {
      V e = S::load(top.above + c * wide + first) - largest;
      for (int i = 0; i < S::lanes; ++i) e[i] = sizeof(T) == sizeof(float) ? __builtin_expf(e[i]) : __builtin_exp(e[i]);
      S::store(top.gradient + c * wide + first, e);
      sum += e;
    }
    for (int64_t c = 0; c < w_.outputs; ++c) {
      T* const at = top.gradient + c * wide + first;
      const V share = S::load(at) / sum;
      S::store(at, here ? share : V{});
    }
    for (int i = 0; i < S::lanes; ++i) {
      w_.loss[first + i] = 0;
      if (first + i >= w_.batch) continue;
      const int64_t at = w_.label[first + i] * wide + first + i;
      top.gradient[at] -= 1;
      w_.loss[first + i] = __builtin_log(double(sum[i])) + double(largest[i]) - double(top.above[at]);
    }
  }

 public:
  DeepStudent(const DeepWork<T>& work, const DeepRules<T>& rules, const Member& me)
      : w_(work), rules_(rules), me_(me) {}

  // One step at rate eta. batch(sample, x, y, label) fetches what one sample is: its inputs, and its answers or label.
  // The loss; beyond the limit or not finite, the weights are as they were.
  template <typename Fetch>
  double step(T eta, const Fetch& fetch) const {
    const DeepLayer<T>& first = w_.layer[0];
    const Range samples = me_.share(w_.batch, S::lanes);
    const int64_t fan_y = whole_vectors<T>(w_.outputs);
    for (int64_t b = samples.first; b < samples.first + samples.count; ++b) {
      fetch(b, first.below_t + b * first.fan, w_.y ? w_.y + b * fan_y : nullptr, w_.label ? w_.label + b : nullptr);
    }
    transpose_part(first.below_t + samples.first * first.fan, first.fan, samples.count, first.below + samples.first,
                   w_.wide, same);
    if (!w_.label) {
      transpose_part(w_.y + samples.first * fan_y, fan_y, samples.count, w_.y_t + samples.first, w_.wide, same);
    }
    me_.barrier->wait();
    for (int64_t l = 0; l < w_.layers; ++l) {
      forward(w_.layer[l], l + 1 < w_.layers ? rules_.slope : T(1));
      me_.barrier->wait();
    }
    for (int64_t b = samples.first; b < samples.first + samples.count; b += S::lanes) {
      w_.label ? entropies(b) : squares(b);
    }
    for (int64_t l = 1; l < w_.layers; ++l) {
      const DeepLayer<T>& layer = w_.layer[l];
      const Range nodes = me_.share(layer.in + layer.bias, S::lanes);
      transpose_part(layer.below + nodes.first * w_.wide, w_.wide, nodes.count, layer.below_t + nodes.first, layer.fan,
                     same);
    }
    me_.barrier->wait();
    double loss = 0;
    for (int64_t b = 0; b < w_.batch; ++b) loss += w_.loss[b];
    loss /= double(w_.batch);
    if (!(loss <= rules_.limit)) return loss;
    for (int64_t l = w_.layers - 1; l > 0; --l) {
      backward(w_.layer[l], w_.layer[l - 1]);
      me_.barrier->wait();
    }
    for (int64_t l = 0; l < w_.layers; ++l) change(w_.layer[l], eta, l + 1 < w_.layers);
    me_.barrier->wait();
    return loss;
  }

  bool within(double loss) const { return loss <= rules_.limit; }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
