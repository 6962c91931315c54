// The layer of outputs above a chunk's activations: products in registers, of which a store or a sum of squares is
// left.
#pragma once

#include "arena.h"
#include "products.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
class OutputLayer {
  using S = Simd<T>;
  using V = typename S::Vector;

  static constexpr int doubles = sizeof(Double) / sizeof(double);
  static constexpr bool wide = FASTSPEC_VECTOR_BYTES == 64;
  static constexpr int most_vectors = wide ? 4 : 2;
  // Samples of a tile: as many sums as registers hold beside operands, but few enough that operands are reused.
  static constexpr int tile_rows(int vectors) { return wide ? (vectors < 3 ? 12 : 24 / vectors) : 6; }

  int64_t nodes_, outputs_;

  // body(vectors, column) for panels of outputs.
  template <typename Body>
  FASTSPEC_INLINE void each_panel(const Body& body) const {
    by_rows<most_vectors>(columns() / S::lanes,
                          [&](auto vectors, int64_t vector) FASTSPEC_INLINE { body(vectors, vector * S::lanes); });
  }

  // each(sample, column, vector of outputs), after each tile tile(), of one panel.
  template <int vectors, typename Each, typename Tile>
  FASTSPEC_INLINE void each_tile(const T* activations, int64_t rows, const T* packed, int64_t column, const Each& each,
                                 const Tile& tile) const {
    constexpr int64_t width = vectors * S::lanes;
    const T* const bias = packed + columns() * nodes_ + column;
    by_rows<tile_rows(vectors)>(rows, [&](auto tall, int64_t b) FASTSPEC_INLINE {
      register_tile<tall.of, vectors, false, Lie::apart>(
          activations + b * nodes_, nodes_, packed + column * nodes_, width, nodes_,
          [&](auto v, int r, int64_t c, V z) FASTSPEC_INLINE { each(b + r, column + c, v.load(bias + c) + z); });
      tile();
    });
  }

 public:
  OutputLayer(int64_t nodes, int64_t outputs) : nodes_(nodes), outputs_(outputs) {}

  int64_t columns() const { return ceil_div(outputs_, S::lanes) * S::lanes; }
  int64_t packed_size() const { return columns() * (nodes_ + 1); }

  // A network's weight [outputs, nodes], transposed, panel by panel, and its bias [outputs], if any; zero beyond them.
  void pack(const T* weight, const T* bias, T* out) const {
    each_panel([&](auto vectors, int64_t column) {
      constexpr int64_t width = vectors.of * S::lanes;
      T* const panel = out + column * nodes_;
      for (int64_t c = 0; c < width; ++c) {
        const bool there = column + c < outputs_;
        const T* const row = weight + (there ? column + c : 0) * nodes_;
        for (int64_t j = 0; j < nodes_; ++j) panel[j * width + c] = there ? row[j] : T(0);
        out[columns() * nodes_ + column + c] = bias && there ? bias[column + c] : T(0);
      }
    });
  }

  // out [rows, columns] of activations [rows, nodes].
  void outputs(const T* activations, int64_t rows, const T* packed, T* out) const {
    each_panel([&](auto vectors, int64_t column) FASTSPEC_INLINE {
      each_tile<vectors.of>(
          activations, rows, packed, column,
          [&](int64_t b, int64_t c, V z) FASTSPEC_INLINE { S::store(out + b * columns() + c, z); }, [] {});
    });
  }

  // The sum of squares of answers [rows, columns] less outputs. Few are added in T, the others in double.
  double squares(const T* activations, int64_t rows, const T* packed, const T* answers) const {
    const int64_t stride = columns();
    Double total = {};
    each_panel([&](auto vectors, int64_t column) FASTSPEC_INLINE {
      V sum[vectors.of] = {};  // one chain of additions would be waited for
      each_tile<vectors.of>(
          activations, rows, packed, column,
          [&](int64_t b, int64_t c, V z) FASTSPEC_INLINE {
            const V residual = S::load(answers + b * stride + c) - z;
            sum[(c - column) / S::lanes] += residual * residual;
          },
          [&]() FASTSPEC_INLINE {
            for (int v = 1; v < vectors.of; ++v) sum[0] += sum[v];
            T lanes[S::lanes];
            S::store(lanes, sum[0]);
            for (int i = 0; i < S::lanes; i += doubles) total += widen(lanes + i);
            for (int v = 0; v < vectors.of; ++v) sum[v] = V{};
          });
    });
    double out = 0;
    for (int i = 0; i < doubles; ++i) out += total[i];
    return out;
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
