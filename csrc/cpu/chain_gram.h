// Grams of the gated backward maps of two chains. A node whose gate is 0 takes part in nothing: where many are, maps
// and products are of a sample's active nodes alone, packed side by side, else of whole layers and several samples
// (fastspec/ops/chain_gram/README.md).
#pragma once

#include <new>

#include "fastspec/chain_gram.h"
#include "open_columns.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
class ChainGram {
  using S = Simd<T>;
  static constexpr int64_t slots = 8;  // blocks of samples whose sums are kept apart

  struct Side {  // of one network and one core
    const ChainLayer* layer;
    T* factor[2];              // V D of active nodes [outputs, padded], of a layer and the one below
    OpenColumns<T> active[2];  // of the same
    T* map;                    // [active nodes above, padded active nodes]
    T* products;               // [rows of a block, padded], and a vector
    T* whole[2];               // V D of all nodes [samples of a group, outputs, padded], of a layer and the one below
    T* gates;                  // [samples of a block, padded]
  };

  struct Sums {  // of one slot
    T *student_teacher, *teacher, *student;
  };

  struct Scratch {  // of one core
    Side teacher, student;
  };

  const ChainGramProblem& problem_;
  bool of_teacher_, of_student_;                  // matrices of one network with itself
  int64_t widest_[2] = {}, largest_map_[2] = {};  // nodes; elements
  int64_t values_ = 0;                            // of a slot: of all layers but the top one
  int64_t top_values_ = 0;                        // of the top layer's matrices
  T* top_gates_[2] = {};                          // of a round's samples in the top layer, [samples, padded]
  T* maps_[2] = {};                               // of whole layers one after the other, [above, padded] each

  const ChainLayer* side(int which) const { return which ? problem_.student : problem_.teacher; }
  int64_t top() const { return problem_.layers - 1; }
  int64_t above(int which, int64_t l) const { return l == top() ? problem_.outputs : side(which)[l + 1].nodes; }
  int64_t block_samples() const { return clamp(128 / (problem_.outputs + !problem_.outputs), 16, 128); }
  int64_t group() const {  // samples of whole layers at a time: some 128 rows
    return clamp(128 / (problem_.outputs + !problem_.outputs), 1, block_samples());
  }

  Sums sums(T* slot, int64_t layer) const {
    Sums found{};
    for (int64_t l = 0; l <= layer; ++l) {
      const int64_t m = problem_.teacher[l].nodes, n = problem_.student[l].nodes;
      found.student_teacher = slot, slot += m * n;
      if (of_teacher_) found.teacher = slot, slot += m * m;
      if (of_student_) found.student = slot, slot += n * n;
    }
    return found;
  }

  Side side(Arena& arena, int which) const {
    Side s{};
    s.layer = side(which);
    const int64_t wide = padded<T>(widest_[which]);
    for (int i = 0; i < 2; ++i) {
      s.factor[i] = arena.template take<T>(problem_.outputs * wide + S::lanes);
      s.active[i].lay_out(arena, widest_[which]);
    }
    s.map = arena.template take<T>(largest_map_[which] + S::lanes);
    s.products = arena.template take<T>(block_rows * wide + S::lanes);
    for (int i = 0; i < 2; ++i) s.whole[i] = arena.template take<T>(group() * problem_.outputs * wide);
    s.gates = arena.template take<T>(block_samples() * wide);
    return s;
  }

  Scratch scratch(Arena& arena) const {
    Scratch s{};
    s.teacher = side(arena, 0), s.student = side(arena, 1);
    return s;
  }

  static void find_active(const ChainLayer& layer, int64_t sample, OpenColumns<T>& out) {
    out.find(static_cast<const T*>(layer.gates) + sample * layer.nodes, layer.nodes);
  }

  // The gated map of the top hidden layer: its weights.
  void start(Side& s, int64_t sample) const {
    const ChainLayer& layer = s.layer[top()];
    OpenColumns<T>& a = s.active[top() % 2];
    find_active(layer, sample, a);
    const T* const map = static_cast<const T*>(layer.map);
    const int64_t wide = padded<T>(a.count);
    for (int64_t c = 0; c < problem_.outputs; ++c) {
      T* const row = s.factor[top() % 2] + c * wide;
      pack_open(a, map + c * layer.nodes, row);
      for (int64_t j = 0; j < wide; j += S::lanes) S::store(row + j, S::load(row + j) * S::load(a.gate + j));
    }
  }

  // The gated map of a layer from that of the layer above.
  void descend(Side& s, int64_t at, int64_t sample) const {
    const ChainLayer& layer = s.layer[at];
    const OpenColumns<T>& above = s.active[(at + 1) % 2];
    OpenColumns<T>& a = s.active[at % 2];
    find_active(layer, sample, a);
    const int64_t wide = padded<T>(a.count), above_wide = padded<T>(above.count);
    const T* const map = static_cast<const T*>(layer.map);
    for (int64_t i = 0; i < above.count; ++i) pack_open(a, map + above.node[i] * layer.nodes, s.map + i * wide);
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
    const OpenColumns<T>&l = left.active[at % 2], &r = right.active[at % 2];
    if (r.count == 0) return;
    const int64_t l_wide = padded<T>(l.count), r_wide = padded<T>(r.count), row_size = right.layer[at].nodes;
    T* const products = right.products;
    by_rows(l.count, [&](auto rows, int64_t j) {
      const int64_t start = upper ? open_start(r, j) : 0;
      block_product<decltype(rows)::of, Lie::adjacent>(
          left.factor[at % 2] + j, l_wide, right.factor[at % 2] + start, r_wide, problem_.outputs, r.count - start,
          [&](auto v, int row, int64_t k, auto z) { v.store(products + row * r_wide + k, z); });
      for (int row = 0; row < decltype(rows)::of; ++row) {
        add_open(r, start, products + row * r_wide, out + l.node[j + row] * row_size);
      }
    });
  }

  // Gates of a block in the top layer, [samples, padded].
  void copy_gates(const ChainLayer& layer, int64_t first, int64_t samples, T* out) const {
    const int64_t wide = padded<T>(layer.nodes);
    for (int64_t b = 0; b < samples; ++b) {
      const T* const gates = static_cast<const T*>(layer.gates) + (first + b) * layer.nodes;
      std::memcpy(out + b * wide, gates, layer.nodes * sizeof(T));
      for (int64_t k = layer.nodes; k < wide; ++k) out[b * wide + k] = 0;
    }
  }

  // Adds the products of two arrays of rows, and of each with itself.
  void add_all(int64_t at, const T* teacher, const T* student, int64_t rows, const Sums& out) const {
    const int64_t m = problem_.teacher[at].nodes, n = problem_.student[at].nodes;
    add_dense(teacher, m, student, n, rows, out.student_teacher);
    if (of_teacher_) add_dense(teacher, m, teacher, m, rows, out.teacher);
    if (of_student_) add_dense(student, n, student, n, rows, out.student);
  }

  // The gated maps of a layer for a group of samples, from those of the layer above.
  void descend_whole(const Side& s, int which, int64_t at, int64_t first, int64_t samples) const {
    const T* const map = maps_[which] + maps_size(which, at);
    const int64_t outputs = problem_.outputs, wide = padded<T>(s.layer[at].nodes), depth = above(which, at);
    T* const out = s.whole[at % 2];
    copy_gates(s.layer[at], first, samples, s.gates);
    if (at < top()) {
      const T* const factor = s.whole[(at + 1) % 2];
      by_rows(samples * outputs, [&](auto rows, int64_t c) {
        block_product<decltype(rows)::of, Lie::apart>(
            factor + c * padded<T>(depth), padded<T>(depth), map, wide, depth, s.layer[at].nodes,
            [&](auto v, int r, int64_t j, auto z) { v.store(out + (c + r) * wide + j, z); });
      });
    }
    for (int64_t b = 0; b < samples; ++b) {
      for (int64_t c = 0; c < outputs; ++c) {
        T* const row = out + (b * outputs + c) * wide;
        const T* const from = at < top() ? row : map + c * wide;
        for (int64_t k = 0; k < wide; ++k) row[k] = from[k] * s.gates[b * wide + k];
      }
    }
  }

  void whole_layers(const Scratch& w, int64_t first, int64_t samples, T* slot) const {
    for (int64_t at = top(); at >= 0; --at) {
      descend_whole(w.teacher, 0, at, first, samples), descend_whole(w.student, 1, at, first, samples);
      if (at == top()) continue;
      add_all(at, w.teacher.whole[at % 2], w.student.whole[at % 2], samples * problem_.outputs, sums(slot, at));
    }
  }

  // Elements of the padded maps below layer `l`.
  int64_t maps_size(int which, int64_t l) const {
    int64_t size = 0;
    for (int64_t i = 0; i < l; ++i) size += above(which, i) * padded<T>(side(which)[i].nodes);
    return size;
  }

  void copy_maps(int which) const {
    for (int64_t l = 0; l < problem_.layers; ++l) {
      const int64_t nodes = side(which)[l].nodes, wide = padded<T>(nodes);
      const T* const map = static_cast<const T*>(side(which)[l].map);
      T* const out = maps_[which] + maps_size(which, l);
      for (int64_t a = 0; a < above(which, l); ++a) {
        for (int64_t k = 0; k < wide; ++k) out[a * wide + k] = k < nodes ? map[a * nodes + k] : 0;
      }
    }
  }

  // Whether it pays to pack active nodes: they are few, and there are enough outputs to make up for it.
  bool packed(int64_t first, int64_t samples) const {
    if (problem_.outputs < 16) return false;
    int64_t active = 0, all = 0;
    for (int which = 0; which < 2; ++which) {
      for (int64_t l = 0; l < problem_.layers; ++l) {
        const int64_t nodes = side(which)[l].nodes;
        active += count_open(static_cast<const T*>(side(which)[l].gates) + first * nodes, samples * nodes);
        all += samples * nodes;
      }
    }
    return 4 * active <= 3 * all;
  }

  void block(Scratch& w, int64_t first, int64_t samples, T* slot) const {
    for (int which = 0; which < 2; ++which) {
      const ChainLayer& layer = side(which)[top()];
      const int64_t row = first % (slots * block_samples());
      copy_gates(layer, first, samples, top_gates_[which] + row * padded<T>(layer.nodes));
    }
    if (top() == 0) return;
    if (!packed(first, samples)) {
      for (int64_t at = 0; at < samples; at += group()) {
        whole_layers(w, first + at, samples - at < group() ? samples - at : group(), slot);
      }
      return;
    }
    for (int64_t sample = first; sample < first + samples; ++sample) {
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

  // In the top layer sums of products of gates, which `finish` multiplies by those of weights; a part has rows of its
  // own.
  void top_layer(int part, int parts, int64_t samples, double* total) const {
    const auto matrix = [&](int left, int right) {
      const int64_t rows = side(left)[top()].nodes, columns = side(right)[top()].nodes;
      add_rows(top_gates_[left], rows, rows * part / parts, rows * (part + 1) / parts, top_gates_[right], columns,
               samples, total);
      total += rows * columns;
    };
    matrix(0, 1);
    if (of_teacher_) matrix(0, 0);
    if (of_student_) matrix(1, 1);
  }

  // The weights of the top layer in float64 [outputs, padded].
  void widen_top(const ChainLayer& layer, double* out) const {
    const int64_t wide = padded<T>(layer.nodes);
    const T* const map = static_cast<const T*>(layer.map);
    for (int64_t c = 0; c < problem_.outputs; ++c) {
      for (int64_t k = 0; k < wide; ++k) out[c * wide + k] = k < layer.nodes ? double(map[c * layer.nodes + k]) : 0;
    }
  }

  // out[j, k] *= sum over the outputs of two weights, for rows `begin` to `end`.
  void multiply_by_weights(const double* left, int64_t nodes, int64_t begin, int64_t end, const double* right,
                           int64_t columns, double* out) const {
    by_rows(end - begin, [&](auto rows, int64_t j) {
      j += begin;
      block_product<decltype(rows)::of, Lie::adjacent>(
          left + j, padded<T>(nodes), right, padded<T>(columns), problem_.outputs, columns,
          [&](auto v, int r, int64_t k, auto z) {
            double* const to = out + (j + r) * columns + k;
            each_lane(v, z, columns - k, [&](int64_t i, double value) { to[i] *= value; });
          });
    });
  }

  double bad() const {
    double sum = 0;
    for (int which = 0; which < 2; ++which) {
      for (int64_t l = 0; l < problem_.layers; ++l) {
        const ChainLayer& layer = side(which)[l];
        sum += spoilt<T>(layer.map, layer.nodes * above(which, l));
        sum += spoilt<T>(layer.gates, layer.nodes * problem_.samples);
      }
    }
    return sum;
  }

  // The results, of which a part has rows of its own.
  void finish(int part, int parts, const double* total, const double* teacher_top, const double* student_top,
              double not_finite) const {
    for (int64_t l = 0; l < problem_.layers; ++l) {
      const int64_t m = problem_.teacher[l].nodes, n = problem_.student[l].nodes;
      const auto matrix = [&](int64_t rows, const double* left, int64_t columns, const double* right, bool own,
                              double* out) {
        const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
        copy_out(total, begin, end, columns, own && l < top(), not_finite, out);
        if (l == top()) multiply_by_weights(left, rows, begin, end, right, columns, out);
        total += rows * columns;
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
        const int64_t map = l < top() ? layer[1].nodes * padded<T>(layer->nodes) : 0;
        if (map > largest_map_[which]) largest_map_[which] = map;
      }
    }
    for (int64_t l = 0; l < p.layers; ++l) {
      const int64_t m = p.teacher[l].nodes, n = p.student[l].nodes;
      const int64_t size = m * n + (of_teacher_ ? m * m : 0) + (of_student_ ? n * n : 0);
      (l < top() ? values_ : top_values_) += size;
    }
  }

  void run(const Parallel& parallel) {
    const int64_t blocks = ceil_div(problem_.samples, block_samples()), kept = blocks < slots ? blocks : slots;
    Arena shared, each;
    double *total, *teacher_top, *student_top;
    T* first_slot;
    const auto lay_out = [&](Arena& arena) {
      total = arena.template take<double>(values_ + top_values_);
      first_slot = arena.template take<T>(kept * values_);
      teacher_top = arena.template take<double>(problem_.outputs * padded<T>(problem_.teacher[top()].nodes));
      student_top = arena.template take<double>(problem_.outputs * padded<T>(problem_.student[top()].nodes));
      for (int which = 0; which < 2; ++which) {
        maps_[which] = arena.template take<T>(maps_size(which, problem_.layers));
        const int64_t rows = kept * block_samples();
        top_gates_[which] = arena.template take<T>(rows * padded<T>(side(which)[top()].nodes));
      }
    };
    lay_out(shared), scratch(each);
    const std::align_val_t line{64};
    char* const memory = static_cast<char*>(::operator new(shared.used + each.used * parallel.parts, line));
    Arena beginning{memory};
    lay_out(beginning);
    copy_maps(0), copy_maps(1);
    std::memset(total, 0, (values_ + top_values_) * sizeof(double));
    std::memset(first_slot, 0, kept * values_ * sizeof(T));
    for (int64_t round = 0; round < blocks; round += slots) {
      const int64_t used = blocks - round < slots ? blocks - round : slots;
      int64_t next = 0;
      parallel([&](int part) {
        Arena arena{memory + shared.used + part * each.used};
        Scratch work = scratch(arena);
        for (;;) {
          const int64_t slot = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
          if (slot >= used) return;
          const int64_t first = (round + slot) * block_samples(), left = problem_.samples - first;
          block(work, first, left < block_samples() ? left : block_samples(), first_slot + slot * values_);
        }
      });
      parallel([&](int part) {
        const int64_t begin = values_ * part / parallel.parts, end = values_ * (part + 1) / parallel.parts;
        collect(total, first_slot, used, values_, begin, end);
        const int64_t first = round * block_samples(), most = used * block_samples();
        const int64_t left = problem_.samples - first;
        top_layer(part, parallel.parts, left < most ? left : most, total + values_);
      });
    }
    widen_top(problem_.teacher[top()], teacher_top), widen_top(problem_.student[top()], student_top);
    const double not_finite = bad();
    parallel([&](int part) { finish(part, parallel.parts, total, teacher_top, student_top, not_finite); });
    ::operator delete(memory, line);
  }
};

inline void chain_gram(const ChainGramProblem& problem, const Parallel& parallel) {
  if (problem.scalar == Scalar::f64) return ChainGram<double>(problem).run(parallel);
  ChainGram<float>(problem).run(parallel);
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
