// Grams of the gated backward maps of two chains, sample by sample: a node whose gate is 0 takes part in nothing, so
// maps and products are of active nodes alone, packed side by side (fastspec/ops/chain_gram/README.md).
#pragma once

#include <new>

#include "arena.h"
#include "fastspec/chain_gram.h"
#include "products.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
class ChainGram {
  using S = Simd<T>;
  static constexpr int64_t slots = 8;          // blocks of samples whose sums are kept apart
  static constexpr int64_t block_samples = 8;  // whose sums are of type T

  static int64_t padded(int64_t nodes) { return ceil_div(nodes, S::lanes) * S::lanes; }

  struct Active {   // nodes of a sample whose gate is not 0
    int32_t* node;  // [padded], those after the last name the column that nobody reads
    T* gate;        // [padded], 0 after the last
    int64_t count;
  };

  struct Side {  // of one network and one core
    const ChainLayer* layer;
    T* factor[2];      // V D of active nodes [outputs, padded], of a layer and the one below
    Active active[2];  // of the same
    T* map;            // [active nodes above, padded active nodes]
  };

  struct Sums {  // of one slot: rows have one column more, for lanes after the last node
    T *student_teacher, *teacher, *student;
  };

  struct Scratch {  // of one core
    Side teacher, student;
    T *teacher_gates, *student_gates;  // of a block in the top layer [block_samples, padded]
  };

  const ChainGramProblem& problem_;
  bool of_teacher_, of_student_;                  // matrices of one network with itself
  int64_t widest_[2] = {}, largest_map_[2] = {};  // nodes; elements
  int64_t values_ = 0;                            // of a slot

  const ChainLayer* side(int which) const { return which ? problem_.student : problem_.teacher; }
  int64_t top() const { return problem_.layers - 1; }

  Sums sums(T* slot, int64_t layer) const {
    Sums found{};
    for (int64_t l = 0; l <= layer; ++l) {
      const int64_t m = problem_.teacher[l].nodes, n = problem_.student[l].nodes;
      found.student_teacher = slot, slot += m * (n + 1);
      if (of_teacher_) found.teacher = slot, slot += m * (m + 1);
      if (of_student_) found.student = slot, slot += n * (n + 1);
    }
    return found;
  }

  Side side(Arena& arena, int which) const {
    Side s{};
    s.layer = side(which);
    const int64_t wide = padded(widest_[which]);
    for (int i = 0; i < 2; ++i) {
      s.factor[i] = arena.template take<T>(problem_.outputs * wide);
      s.active[i].node = arena.template take<int32_t>(wide);
      s.active[i].gate = arena.template take<T>(wide);
    }
    s.map = arena.template take<T>(largest_map_[which]);
    return s;
  }

  Scratch scratch(Arena& arena) const {
    Scratch s{};
    s.teacher = side(arena, 0), s.student = side(arena, 1);
    s.teacher_gates = arena.template take<T>(block_samples * padded(problem_.teacher[top()].nodes));
    s.student_gates = arena.template take<T>(block_samples * padded(problem_.student[top()].nodes));
    return s;
  }

  static void find_active(const ChainLayer& layer, int64_t sample, Active& out) {
    const T* const gates = static_cast<const T*>(layer.gates) + sample * layer.nodes;
    int64_t count = 0;
    for (int64_t k = 0; k < layer.nodes; ++k) {
      out.node[count] = int32_t(k), out.gate[count] = gates[k];
      count += !(gates[k] == 0);  // NaN is kept
    }
    out.count = count;
    for (int64_t i = count; i < padded(count); ++i) out.node[i] = int32_t(layer.nodes), out.gate[i] = 0;
  }

  // The gated map of the top hidden layer: its weights.
  void start(Side& s, int64_t sample) const {
    const ChainLayer& layer = s.layer[top()];
    Active& a = s.active[top() % 2];
    find_active(layer, sample, a);
    const T* const map = static_cast<const T*>(layer.map);
    const int64_t wide = padded(a.count);
    for (int64_t c = 0; c < problem_.outputs; ++c) {
      T* const row = s.factor[top() % 2] + c * wide;
      for (int64_t i = 0; i < a.count; ++i) row[i] = map[c * layer.nodes + a.node[i]] * a.gate[i];
      for (int64_t i = a.count; i < wide; ++i) row[i] = 0;
    }
  }

  // The gated map of a layer from that of the layer above.
  void descend(Side& s, int64_t at, int64_t sample) const {
    const ChainLayer& layer = s.layer[at];
    const Active& above = s.active[(at + 1) % 2];
    Active& a = s.active[at % 2];
    find_active(layer, sample, a);
    const int64_t wide = padded(a.count), above_wide = padded(above.count);
    const T* const map = static_cast<const T*>(layer.map);
    for (int64_t i = 0; i < above.count; ++i) {
      const T* const from = map + above.node[i] * layer.nodes;
      T* const row = s.map + i * wide;
      for (int64_t j = 0; j < a.count; ++j) row[j] = from[a.node[j]];
      for (int64_t j = a.count; j < wide; ++j) row[j] = 0;
    }
    const T* const factor = s.factor[(at + 1) % 2];
    T* const out = s.factor[at % 2];
    by_rows(problem_.outputs, [&](auto rows, int64_t c) {
      block_product<decltype(rows)::of, Lie::apart>(
          factor + c * above_wide, above_wide, s.map, wide, above.count, a.count,
          [&](auto v, int r, int64_t j, auto z) { v.store(out + (c + r) * wide + j, z * v.load(a.gate + j)); });
    });
  }

  // out[j, k] += left^T right over the outputs, for active nodes; with `upper` those with k after j, and a few before.
  void add_products(const Side& left, const Side& right, int64_t at, T* out, bool upper) const {
    const Active &l = left.active[at % 2], &r = right.active[at % 2];
    const int64_t l_wide = padded(l.count), r_wide = padded(r.count), row_size = right.layer[at].nodes + 1;
    by_rows(l.count, [&](auto rows, int64_t j) {
      const int64_t first = upper ? j / S::lanes * S::lanes : 0;
      block_product<decltype(rows)::of, Lie::adjacent>(left.factor[at % 2] + j, l_wide, right.factor[at % 2] + first,
                                                       r_wide, problem_.outputs, r.count - first,
                                                       [&](auto v, int row, int64_t k, auto z) {
                                                         T* const to = out + l.node[j + row] * row_size;
                                                         const int32_t* const node = r.node + first + k;
                                                         for (int i = 0; i < decltype(v)::lanes; ++i)
                                                           to[node[i]] += z[i];
                                                       });
    });
  }

  // Gates of a block in the top layer, [samples, padded].
  void copy_gates(const ChainLayer& layer, int64_t first, int64_t samples, T* out) const {
    const int64_t wide = padded(layer.nodes);
    for (int64_t b = 0; b < samples; ++b) {
      const T* const gates = static_cast<const T*>(layer.gates) + (first + b) * layer.nodes;
      std::memcpy(out + b * wide, gates, layer.nodes * sizeof(T));
      for (int64_t k = layer.nodes; k < wide; ++k) out[b * wide + k] = 0;
    }
  }

  // each(i, lane) of at most `count` lanes.
  template <typename W, typename Vector, typename Each>
  static void each_lane(W v, Vector z, int64_t count, const Each& each) {
    std::remove_cvref_t<decltype(z[0])> lanes[W::lanes];
    v.store(lanes, z);
    for (int64_t i = 0; i < W::lanes && i < count; ++i) each(i, lanes[i]);
  }

  // out[j, k] += left^T right; `out` has `columns` columns and one more.
  static void add_dense(const T* left, int64_t nodes, const T* right, int64_t columns, int64_t depth, T* out) {
    by_rows(nodes, [&](auto rows, int64_t j) {
      block_product<decltype(rows)::of, Lie::adjacent>(
          left + j, padded(nodes), right, padded(columns), depth, columns, [&](auto v, int r, int64_t k, auto z) {
            T* const to = out + (j + r) * (columns + 1) + k;
            each_lane(v, z, columns - k, [&](int64_t i, T value) { to[i] += value; });
          });
    });
  }

  // In the top layer sums of products of gates, which `finish` multiplies by those of weights.
  void top_layer(const Scratch& w, int64_t first, int64_t samples, const Sums& out) const {
    const ChainLayer &t = problem_.teacher[top()], &s = problem_.student[top()];
    copy_gates(t, first, samples, w.teacher_gates), copy_gates(s, first, samples, w.student_gates);
    add_dense(w.teacher_gates, t.nodes, w.student_gates, s.nodes, samples, out.student_teacher);
    if (of_teacher_) add_dense(w.teacher_gates, t.nodes, w.teacher_gates, t.nodes, samples, out.teacher);
    if (of_student_) add_dense(w.student_gates, s.nodes, w.student_gates, s.nodes, samples, out.student);
  }

  void block(Scratch& w, int64_t first, int64_t samples, T* slot) const {
    top_layer(w, first, samples, sums(slot, top()));
    for (int64_t sample = first; sample < first + samples && top() > 0; ++sample) {
      start(w.teacher, sample), start(w.student, sample);
      for (int64_t at = top() - 1; at >= 0; --at) {
        descend(w.teacher, at, sample), descend(w.student, at, sample);
        const Sums out = sums(slot, at);
        add_products(w.teacher, w.student, at, out.student_teacher, false);
        if (of_teacher_) add_products(w.teacher, w.teacher, at, out.teacher, true);
        if (of_student_) add_products(w.student, w.student, at, out.student, true);
      }
    }
  }

  // total += the slots' sums, in their order; the slots are 0 again.
  static void collect(double* total, T* first_slot, int64_t used, int64_t values, int64_t begin, int64_t end) {
    for (int64_t slot = 0; slot < used; ++slot) {
      T* const part = first_slot + slot * values;
      for (int64_t i = begin; i < end; ++i) total[i] += double(part[i]), part[i] = 0;
    }
  }

  // The weights of the top layer in float64 [outputs, padded].
  void widen_top(const ChainLayer& layer, double* out) const {
    const int64_t wide = padded(layer.nodes);
    const T* const map = static_cast<const T*>(layer.map);
    for (int64_t c = 0; c < problem_.outputs; ++c) {
      for (int64_t k = 0; k < wide; ++k) out[c * wide + k] = k < layer.nodes ? double(map[c * layer.nodes + k]) : 0;
    }
  }

  // out[j, k] *= sum over the outputs of two weights.
  void multiply_by_weights(const double* left, int64_t nodes, const double* right, int64_t columns, double* out) const {
    by_rows(nodes, [&](auto rows, int64_t j) {
      block_product<decltype(rows)::of, Lie::adjacent>(
          left + j, padded(nodes), right, padded(columns), problem_.outputs, columns,
          [&](auto v, int r, int64_t k, auto z) {
            double* const to = out + (j + r) * columns + k;
            each_lane(v, z, columns - k, [&](int64_t i, double value) { to[i] *= value; });
          });
    });
  }

  static double spoilt(const void* values, int64_t count) {  // 0, or NaN where a value is not finite
    const T* const at = static_cast<const T*>(values);
    T sum = 0;
    int64_t i = 0;
    typename S::Vector sums = {};
    for (; i + S::lanes <= count; i += S::lanes) sums += S::load(at + i) * T(0);
    for (int lane = 0; lane < S::lanes; ++lane) sum += sums[lane];
    for (; i < count; ++i) sum += at[i] * T(0);
    return double(sum);
  }

  double spoilt() const {
    double sum = 0;
    for (int which = 0; which < 2; ++which) {
      for (int64_t l = 0; l < problem_.layers; ++l) {
        const ChainLayer& layer = side(which)[l];
        sum += spoilt(layer.map, layer.nodes * (l == top() ? problem_.outputs : side(which)[l + 1].nodes));
        sum += spoilt(layer.gates, layer.nodes * problem_.samples);
      }
    }
    return sum;
  }

  // The sums of one matrix, of which only those above the diagonal are there with `mirror`; plus `spoilt`.
  static void copy_out(const double* total, int64_t rows, int64_t columns, bool mirror, double spoilt, double* out) {
    for (int64_t j = 0; j < rows; ++j) {
      for (int64_t k = 0; k < columns; ++k) {
        const int64_t at = mirror && k < j ? k * (columns + 1) + j : j * (columns + 1) + k;
        out[j * columns + k] = total[at] + spoilt;
      }
    }
  }

  void finish(const double* total, double* teacher_top, double* student_top) const {
    widen_top(problem_.teacher[top()], teacher_top), widen_top(problem_.student[top()], student_top);
    const double bad = spoilt();
    for (int64_t l = 0; l < problem_.layers; ++l) {
      const int64_t m = problem_.teacher[l].nodes, n = problem_.student[l].nodes;
      const auto matrix = [&](int64_t rows, const double* left, int64_t columns, const double* right, bool own,
                              double* out) {
        copy_out(total, rows, columns, own && l < top(), bad, out);
        if (l == top()) multiply_by_weights(left, rows, right, columns, out);
        total += rows * (columns + 1);
      };
      matrix(m, teacher_top, n, student_top, false, problem_.out[l].student_teacher);
      if (of_teacher_) matrix(m, teacher_top, m, teacher_top, true, problem_.out[l].teacher);
      if (of_student_) matrix(n, student_top, n, student_top, true, problem_.out[l].student);
    }
  }

 public:
  explicit ChainGram(const ChainGramProblem& p) : problem_(p), of_teacher_(p.of_teacher), of_student_(p.of_student) {
    for (int which = 0; which < 2; ++which) {
      for (int64_t l = 0; l < p.layers; ++l) {
        const ChainLayer* const layer = side(which) + l;
        if (layer->nodes > widest_[which]) widest_[which] = layer->nodes;
        const int64_t map = l < top() ? layer[1].nodes * padded(layer->nodes) : 0;
        if (map > largest_map_[which]) largest_map_[which] = map;
      }
    }
    for (int64_t l = 0; l < p.layers; ++l) {
      const int64_t m = p.teacher[l].nodes, n = p.student[l].nodes;
      values_ += m * (n + 1) + (of_teacher_ ? m * (m + 1) : 0) + (of_student_ ? n * (n + 1) : 0);
    }
  }

  void run(const Parallel& parallel) const {
    const int64_t blocks = ceil_div(problem_.samples, block_samples), kept = blocks < slots ? blocks : slots;
    Arena shared, each;
    double *total, *teacher_top, *student_top;
    T* first_slot;
    const auto lay_out = [&](Arena& arena) {
      total = arena.template take<double>(values_), first_slot = arena.template take<T>(kept * values_);
      teacher_top = arena.template take<double>(problem_.outputs * padded(problem_.teacher[top()].nodes));
      student_top = arena.template take<double>(problem_.outputs * padded(problem_.student[top()].nodes));
    };
    lay_out(shared), scratch(each);
    const std::align_val_t line{64};
    char* const memory = static_cast<char*>(::operator new(shared.used + each.used * parallel.parts, line));
    Arena beginning{memory};
    lay_out(beginning);
    std::memset(total, 0, values_ * sizeof(double)), std::memset(first_slot, 0, kept * values_ * sizeof(T));
    for (int64_t round = 0; round < blocks; round += slots) {
      const int64_t used = blocks - round < slots ? blocks - round : slots;
      int64_t next = 0;
      parallel([&](int part) {
        Arena arena{memory + shared.used + part * each.used};
        Scratch work = scratch(arena);
        for (;;) {
          const int64_t slot = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
          if (slot >= used) return;
          const int64_t first = (round + slot) * block_samples, left = problem_.samples - first;
          block(work, first, left < block_samples ? left : block_samples, first_slot + slot * values_);
        }
      });
      parallel([&](int part) {
        const int64_t begin = values_ * part / parallel.parts, end = values_ * (part + 1) / parallel.parts;
        collect(total, first_slot, used, values_, begin, end);
      });
    }
    finish(total, teacher_top, student_top);
    ::operator delete(memory, line);
  }
};

inline void chain_gram(const ChainGramProblem& problem, const Parallel& parallel) {
  if (problem.scalar == Scalar::f64) return ChainGram<double>(problem).run(parallel);
  ChainGram<float>(problem).run(parallel);
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
