// Many steps of many students: each is one piece of work, whose weights a core keeps near for all its steps.
#pragma once

#include <new>

#include "batches.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
class Training {
  static constexpr int64_t saved_steps = 64;  // between copies of the weights that a diverged student goes back to

  struct Workspace {  // of one core
    Network<T> weights, sums, saved_weights, saved_sums;
    Activations<T> part;
    BatchMemory<T> batches;
  };

  const TrainingProblem& problem_;
  Sizes sizes_;
  StepRule<T> rule_;
  bool fresh_;
  int64_t most_nodes_ = 0;

  int64_t first_values(int64_t nodes) const { return nodes * sizes_.fan_in; }
  int64_t top_values(int64_t nodes) const { return (nodes + 1) * sizes_.fan_out; }

  Network<T> network(Arena& arena, int64_t nodes) const {
    T* const first = arena.take<T>(first_values(nodes));
    return {first, arena.take<T>(top_values(nodes))};
  }

  Workspace lay_out(Arena& arena, const Network<T>& teacher) const {
    const Sizes& s = sizes_;
    const bool momentum = rule_.momentum != 0;
    Workspace w{};
    w.weights = network(arena, most_nodes_), w.saved_weights = network(arena, most_nodes_);
    if (momentum || s.batch > s.part) w.sums = network(arena, most_nodes_);
    if (momentum) w.saved_sums = network(arena, most_nodes_);
    w.part.x = arena.take<T>(s.part * s.fan_in), w.part.x_t = arena.take<T>(s.fan_in * s.wide);
    w.part.residual = arena.take<T>(s.part * s.fan_out), w.part.residual_t = arena.take<T>(s.fan_out * s.wide);
    w.part.hidden = arena.take<T>(most_nodes_ * s.wide), w.part.gradient = arena.take<T>(Blocks<T>::tall * s.wide);
    BatchMemory<T>& b = w.batches;
    if (fresh_) {
      const int64_t values = ceil_div(s.part * s.inputs, 4) * 4;
      b.words = arena.take<uint32_t>(values), b.normals = arena.take<float>(values);
      b.hidden = arena.take<T>(problem_.teacher_nodes * s.wide);
      b.teacher = &teacher, b.teacher_nodes = problem_.teacher_nodes;
    } else {
      b.rows = arena.take<int64_t>(s.batch), b.next_rows = arena.take<int64_t>(s.batch);
    }
    return w;
  }

  // Between the rows of network `k` in packed arrays, from `start`, and its own; `fetch` says in which direction.
  void move(const Packed& packed, int64_t k, int64_t start, int64_t nodes, const Network<T>& network, bool bias,
            bool fetch) const {
    const Sizes& s = sizes_;
    const auto copy = [&](void* array, int64_t at, T* row, int64_t count) {
      T* const given = static_cast<T*>(array) + at;
      std::memcpy(fetch ? row : given, fetch ? given : row, count * sizeof(T));
    };
    for (int64_t j = 0; j < nodes; ++j) {
      copy(packed.w1, (start + j) * s.inputs, network.first + j * s.fan_in, s.inputs);
      copy(packed.w2, (start + j) * s.outputs, network.top + j * s.fan_out, s.outputs);
      if (bias) copy(packed.b1, start + j, network.first + j * s.fan_in + s.inputs, 1);
    }
    if (bias) copy(packed.b2, k * s.outputs, network.top + nodes * s.fan_out, s.outputs);
  }

  void clear(const Network<T>& network, int64_t nodes) const {
    std::memset(network.first, 0, first_values(nodes) * sizeof(T));
    std::memset(network.top, 0, top_values(nodes) * sizeof(T));
  }

  void copy(const Network<T>& from, const Network<T>& to, int64_t nodes) const {
    std::memcpy(to.first, from.first, first_values(nodes) * sizeof(T));
    std::memcpy(to.top, from.top, top_values(nodes) * sizeof(T));
  }

  static bool finite(const T* values, int64_t count) {  // a whole number of vectors
    using S = Simd<T>;
    typename S::Vector sum = {};
    for (int64_t i = 0; i < count; i += S::lanes) sum += S::load(values + i) * T(0);
    T zero = 0;
    for (int i = 0; i < S::lanes; ++i) zero += sum[i];
    return zero == 0;
  }
  bool finite(const Student<T>& student) const {
    return finite(student.weights.first, first_values(student.nodes)) &&
           finite(student.weights.top, top_values(student.nodes));
  }

  // Runs steps of one student, and knows how to go back.
  struct Run {
    const Training& training;
    const Workspace& work;
    const Student<T>& student;
    BatchReader<T> batches;
    double lr;
    int64_t saved = 0;

    bool step(int64_t t) {
      const double* const factors = training.problem_.multipliers;
      batches.advance(t);
      return student.step(T(factors ? factors[t] * lr : lr), batches);
    }

    void save(int64_t t) {
      saved = t;
      training.copy(student.weights, work.saved_weights, student.nodes);
      if (training.rule_.momentum != 0) training.copy(student.sums, work.saved_sums, student.nodes);
    }

    // Step t - 1 has spoilt the weights: undoes it, and returns its number (0 for weights that came spoilt).
    int64_t back_before(int64_t t) {
      if (t == 0) return 0;
      training.copy(work.saved_weights, student.weights, student.nodes);
      if (training.rule_.momentum != 0) training.copy(work.saved_sums, student.sums, student.nodes);
      batches.begin(saved);
      for (int64_t again = saved; again < t - 1; ++again) step(again);
      return t - 1;
    }

    // All steps; the step at which the student diverged, or -1. A weight that is not finite makes the next batch loss
    // not finite, so that weights need no look at every step.
    int64_t all() {
      const int64_t steps = training.problem_.steps;
      batches.begin(0);
      for (int64_t t = 0;; ++t) {
        if (t % saved_steps == 0 || t == steps) {
          if (!training.finite(student)) return back_before(t);
          save(t);
        }
        if (t == steps) return -1;
        if (!step(t)) return training.finite(student) ? t : back_before(t);
      }
    }
  };

  void train(int64_t k, const Workspace& work) const {
    const TrainingProblem& p = problem_;
    const int64_t start = p.offsets[k], nodes = p.offsets[k + 1] - start;
    const bool momentum = rule_.momentum != 0;
    const Student<T> student(sizes_, rule_, work.part, work.weights, work.sums, nodes);
    const auto both = [&](bool fetch) {
      move(p.weights, k, start, nodes, work.weights, rule_.bias, fetch);
      if (momentum) move(p.buffers, k, start, nodes, work.sums, rule_.bias, fetch);
    };
    clear(work.weights, nodes);
    if (momentum) clear(work.sums, nodes);
    both(true);
    const int64_t diverged = Run{*this, work, student, {p, sizes_, work.part, work.batches, k}, p.lr[k]}.all();
    if (diverged >= 0) {
      p.diverged_step[k] = p.batches.first + diverged;
      if (momentum) clear(work.sums, nodes);
    }
    both(false);
  }

 public:
  explicit Training(const TrainingProblem& p) : problem_(p) {
    Sizes& s = sizes_;
    s.inputs = p.inputs, s.outputs = p.outputs;
    s.fan_in = whole_vectors<T>(p.inputs + 1), s.fan_out = whole_vectors<T>(p.outputs);
    s.batch = p.batches.size ? p.batches.size : p.samples;
    s.part = s.batch < part_samples ? s.batch : part_samples;
    s.wide = whole_vectors<T>(s.part);
    fresh_ = p.batches.fresh_std > 0;
    const Rule& r = p.rule;
    const double largest = sizeof(T) == sizeof(float) ? __FLT_MAX__ : __DBL_MAX__;
    rule_ = {T(r.momentum), T(r.weight_decay), T(r.negative_slope), T(r.loss_limit < largest ? r.loss_limit : largest),
             r.bias,        r.normalize,       !r.fixed_first,      !r.fixed_top};
    for (int64_t k = 0; k < p.students; ++k) {
      const int64_t nodes = p.offsets[k + 1] - p.offsets[k];
      if (nodes > most_nodes_) most_nodes_ = nodes;
    }
  }

  // `order`: who comes first; cores take the next student when they are done with one.
  void run(const int64_t* order, const Parallel& parallel) const {
    const int64_t teacher_nodes = fresh_ ? problem_.teacher_nodes : 0;
    Network<T> teacher{};
    const auto shared = [&](Arena& arena) { teacher = network(arena, teacher_nodes); };
    Arena first, each;  // what all share, what every core has for itself
    shared(first), lay_out(each, teacher);
    const std::align_val_t line{64};
    char* const memory = static_cast<char*>(::operator new(first.used + each.used * parallel.parts, line));
    Arena beginning{memory};
    shared(beginning);
    if (fresh_) {
      clear(teacher, teacher_nodes);
      move(problem_.teacher, 0, 0, teacher_nodes, teacher, true, true);
    }
    int64_t next = 0;
    parallel([&](int part) {
      Arena arena{memory + first.used + part * each.used};
      const Workspace work = lay_out(arena, teacher);
      const Sizes& s = sizes_;
      std::memset(work.part.x, 0, s.part * s.fan_in * sizeof(T));
      for (int64_t b = 0; b < s.part; ++b) work.part.x[b * s.fan_in + s.inputs] = T(rule_.bias);
      for (;;) {
        const int64_t at = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        if (at >= problem_.students) return;
        if (problem_.diverged_step[order[at]] < 0) train(order[at], work);
      }
    });
    ::operator delete(memory, line);
  }
};

inline void train(const TrainingProblem& problem, const int64_t* order, const Parallel& parallel) {
  if (problem.scalar == Scalar::f64) return Training<double>(problem).run(order, parallel);
  Training<float>(problem).run(order, parallel);
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
