// Squares of the residuals of many students' outputs, which stay in registers (fastspec/ops/output_loss/README.md).
#pragma once

#include <new>

#include "arena.h"
#include "fastspec/output_loss.h"
#include "products.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
class OutputLoss {
  using S = Simd<T>;
  using V = typename S::Vector;

  static constexpr bool wide = FASTSPEC_VECTOR_BYTES == 64;
  static constexpr int doubles = sizeof(Double) / sizeof(double);
  static constexpr int most_vectors = wide ? 4 : 2;
  // Samples of a tile: as many sums as registers hold beside operands, but few enough that operands are reused.
  static constexpr int tile_rows(int vectors) { return wide ? (vectors < 3 ? 12 : 24 / vectors) : 6; }

  // At most, of one task: their answers stay in the second-level cache.
  static constexpr int64_t chunk_samples = 1536;

  // Of one core, zero beyond the outputs.
  struct Scratch {
    T* answers;  // [chunk, columns]
    T* weight;   // [nodes, columns of a panel], of a student, transposed
    T* bias;     // [columns of a panel]
  };

  const OutputLossProblem& problem_;
  const int64_t columns_, chunks_, chunk_;

  Scratch scratch(Arena& arena) const {
    T* const answers = arena.take<T>(chunk_ * columns_);
    T* const weight = arena.take<T>(problem_.nodes * most_vectors * S::lanes);
    return {answers, weight, arena.take<T>(most_vectors * S::lanes)};
  }

  void pack_answers(int64_t first, int64_t rows, T* __restrict out) const {
    const int64_t outputs = problem_.outputs;
    const T* const answers = static_cast<const T*>(problem_.answers) + first * outputs;
    for (int64_t b = 0; b < rows; ++b) {
      for (int64_t c = 0; c < columns_; ++c) out[b * columns_ + c] = c < outputs ? answers[b * outputs + c] : T(0);
    }
  }

  // Outputs [first, first + width) of student k.
  void pack_panel(int64_t k, int64_t first, int64_t width, const Scratch& to) const {
    const int64_t nodes = problem_.nodes, outputs = problem_.outputs;
    const T* const bias = static_cast<const T*>(problem_.bias);
    for (int64_t c = 0; c < width; ++c) {
      const bool there = first + c < outputs;
      const int64_t output = k * outputs + first + c;
      const T* const weight = static_cast<const T*>(problem_.weight) + (there ? output * nodes : 0);
      to.bias[c] = bias && there ? bias[output] : T(0);
      for (int64_t j = 0; j < nodes; ++j) to.weight[j * width + c] = there ? weight[j] : T(0);
    }
  }

  // Of one student's chunk, the sum of squares of answers - (bias + activation weight).
  double squares(int64_t k, int64_t first, int64_t rows, const Scratch& work) const {
    const int64_t nodes = problem_.nodes, columns = columns_;
    const T* const activations = static_cast<const T*>(problem_.activations) + (k * problem_.samples + first) * nodes;
    Double total = {};
    by_rows<most_vectors>(columns / S::lanes, [&](auto vectors, int64_t vector) FASTSPEC_INLINE {
      constexpr int64_t width = vectors.of * S::lanes;
      pack_panel(k, vector * S::lanes, width, work);
      by_rows<tile_rows(vectors.of)>(rows, [&](auto tile, int64_t b) FASTSPEC_INLINE {
        const T* const answers = work.answers + b * columns + vector * S::lanes;
        V sum[vectors.of] = {};  // one chain of additions would be waited for
        register_tile<tile.of, vectors.of, false, Lie::apart>(activations + b * nodes, nodes, work.weight, width, nodes,
                                                              [&](auto v, int r, int64_t c, V z) FASTSPEC_INLINE {
                                                                const V residual = v.load(answers + r * columns + c) -
                                                                                   (v.load(work.bias + c) + z);
                                                                sum[c / S::lanes] += residual * residual;
                                                              });
        for (int v = 1; v < vectors.of; ++v) sum[0] += sum[v];
        T lanes[S::lanes];
        S::store(lanes, sum[0]);
        for (int i = 0; i < S::lanes; i += doubles) total += widen(lanes + i);
      });
    });
    double out = 0;
    for (int i = 0; i < doubles; ++i) out += total[i];
    return out;
  }

 public:
  explicit OutputLoss(const OutputLossProblem& problem)
      : problem_(problem),
        columns_(ceil_div(problem.outputs, S::lanes) * S::lanes),
        chunks_(ceil_div(problem.samples, chunk_samples)),
        chunk_(chunks_ ? ceil_div(problem.samples, chunks_) : 0) {}

  void run(const Parallel& parallel) const {
    const int64_t students = problem_.students, tasks = chunks_ * students;
    Arena shared, each;
    shared.take<double>(tasks), scratch(each);
    const std::align_val_t line{64};
    char* const memory = static_cast<char*>(::operator new(shared.used + each.used * parallel.parts, line));
    double* const sums = Arena{memory}.take<double>(tasks);
    parallel([&](int part) {
      Arena arena{memory + shared.used + part * each.used};
      const Scratch work = scratch(arena);
      int64_t packed = -1;
      for (int64_t task = tasks * part / parallel.parts; task < tasks * (part + 1) / parallel.parts; ++task) {
        const int64_t chunk = task / students, first = chunk * chunk_, left = problem_.samples - first;
        const int64_t rows = left < chunk_ ? left : chunk_;
        if (chunk != packed) pack_answers(first, rows, work.answers), packed = chunk;
        sums[task] = squares(task % students, first, rows, work);
      }
    });
    for (int64_t k = 0; k < students; ++k) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) sum += sums[chunk * students + k];
      problem_.loss[k] = sum / 2;
    }
    ::operator delete(memory, line);
  }
};

inline void output_loss(const OutputLossProblem& problem, const Parallel& parallel) {
  if (problem.scalar == Scalar::f64) return OutputLoss<double>(problem).run(parallel);
  OutputLoss<float>(problem).run(parallel);
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
