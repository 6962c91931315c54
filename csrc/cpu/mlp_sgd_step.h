// Many steps of deep students of one shape: a team of cores keeps one student near for all its steps.
#pragma once

#include <new>

#include "deep_student.h"
#include "fastspec/mlp_sgd_step.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T>
class DeepTraining {
  struct Team {
    Barrier barrier;
    int64_t student;
    DeepWork<T> work;
  };

  const DeepProblem& p_;
  DeepRules<T> rules_;

  // Everything of a team; with an arena that only counts, nothing is written.
  Team* lay_out(Arena& arena) const {
    Team* const team = arena.take<Team>(1);
    DeepLayer<T>* const layer = arena.take<DeepLayer<T>>(p_.layers);
    const int64_t wide = whole_vectors<T>(p_.batch), outputs = p_.widths[p_.layers];
    DeepWork<T> work{layer, p_.layers, p_.batch, wide, outputs, nullptr, nullptr, nullptr, nullptr};
    if (p_.labels) {
      work.label = arena.take<int64_t>(p_.batch);
    } else {
      work.y = arena.take<T>(wide * whole_vectors<T>(outputs));
      work.y_t = arena.take<T>(whole_vectors<T>(outputs) * wide);
    }
    work.loss = arena.take<double>(wide);
    T* below = nullptr;
    for (int64_t l = 0; l <= p_.layers; ++l) {
      const int64_t nodes = p_.widths[l];
      const bool bias = l < p_.layers && p_.bias[l];
      T* const values = arena.take<T>(whole_vectors<T>(nodes + bias) * wide);
      if (l > 0) place_layer(arena, layer, l - 1, below, values, wide);
      below = values;
    }
    if (arena.base) team->work = work;
    return team;
  }

  void place_layer(Arena& arena, DeepLayer<T>* layers, int64_t l, T* below, T* above, int64_t wide) const {
    DeepLayer<T> layer{p_.widths[l], p_.widths[l + 1], 0,     p_.bias[l], nullptr, nullptr,
                       below,        nullptr,          above, nullptr,    nullptr};
    layer.fan = whole_vectors<T>(layer.in + layer.bias);
    layer.weight = arena.take<T>(layer.out * layer.fan);
    if (p_.buffers) layer.sums = arena.take<T>(layer.out * layer.fan);
    layer.below_t = arena.take<T>(wide * layer.fan);
    layer.gradient = arena.take<T>(layer.out * wide);
    if (p_.gradient_norm) layer.square = arena.take<double>(layer.out);
    if (arena.base) layers[l] = layer;
  }

  // Activations that stand for a bias.
  void set_ones(const DeepWork<T>& work) const {
    for (int64_t l = 0; l < work.layers; ++l) {
      const DeepLayer<T>& layer = work.layer[l];
      if (!layer.bias) continue;
      for (int64_t b = 0; b < work.batch; ++b) {
        layer.below[layer.in * work.wide + b] = 1;
        layer.below_t[b * layer.fan + layer.in] = 1;
      }
    }
  }

  // Between a student's flat parameters and its layers; `fetch` says in which direction.
  void move(void* flat, int64_t k, const DeepWork<T>& work, T* DeepLayer<T>::* part, bool fetch) const {
    T* at = static_cast<T*>(flat) + k * p_.count;
    const auto copy = [&](T* row, int64_t count, int64_t row_stride, int64_t rows) {
      for (int64_t j = 0; j < rows; ++j, at += count, row += row_stride) {
        std::memcpy(fetch ? row : at, fetch ? at : row, count * sizeof(T));
      }
    };
    for (int64_t l = 0; l < work.layers; ++l) {
      const DeepLayer<T>& layer = work.layer[l];
      copy(layer.*part, layer.in, layer.fan, layer.out);
      if (layer.bias) copy(layer.*part + layer.in, 1, layer.fan, layer.out);
    }
  }

  void record(int64_t k, int64_t t, double loss, bool made, const DeepWork<T>& work) const {
    p_.loss[k * p_.steps + t] = loss;
    for (int64_t l = 0; made && p_.gradient_norm && l < work.layers; ++l) {
      double sum = 0;
      for (int64_t j = 0; j < work.layer[l].out; ++j) sum += work.layer[l].square[j];
      p_.gradient_norm[(k * p_.steps + t) * p_.layers + l] = __builtin_sqrt(sum);
    }
  }

  const char* row(const void* table, int64_t stride, int64_t sample) const {
    return static_cast<const char*>(table) + sample * stride * int64_t(sizeof(T));
  }

  void train(int64_t k, const DeepWork<T>& work, const Member& me) const {
    const bool leads = me.number == 0;
    if (leads) {
      move(p_.parameters, k, work, &DeepLayer<T>::weight, true);
      if (p_.buffers) move(p_.buffers, k, work, &DeepLayer<T>::sums, true);
    }
    const DeepStudent<T> student(work, rules_, me);  // whose first barrier comes before weights are read
    bool stopped = false;
    for (int64_t t = 0; t < p_.steps && !stopped; ++t) {
      const int64_t* const rows = p_.indices + k * p_.indices_stride + t * p_.batch;
      const int64_t* const next = t + 1 < p_.steps ? rows + p_.batch : rows;
      const double loss = student.step(T(p_.lr[t]), [&](int64_t b, T* x, T* y, int64_t* label) {
        std::memcpy(x, row(p_.x, p_.x_stride, rows[b]), p_.widths[0] * sizeof(T));
        if (p_.labels) {
          *label = p_.labels[rows[b]];
        } else {
          std::memcpy(y, row(p_.y, p_.y_stride, rows[b]), work.outputs * sizeof(T));
          for (int64_t c = 0; c < work.outputs * int64_t(sizeof(T)); c += 64) {
            __builtin_prefetch(row(p_.y, p_.y_stride, next[b]) + c);
          }
        }
        __builtin_prefetch(row(p_.x, p_.x_stride, next[b]));
      });
      stopped = !student.within(loss);
      if (leads) record(k, t, loss, !stopped, work);
      if (leads && stopped) p_.diverged_step[k] = p_.first_step + t;
    }
    if (!leads) return;  // nobody touches weights beyond the end of a step
    move(p_.parameters, k, work, &DeepLayer<T>::weight, false);
    if (!p_.buffers) return;
    T* const buffers = static_cast<T*>(p_.buffers) + k * p_.count;
    if (stopped) {
      std::memset(buffers, 0, p_.count * sizeof(T));
    } else {
      move(p_.buffers, k, work, &DeepLayer<T>::sums, false);
    }
  }

 public:
  explicit DeepTraining(const DeepProblem& p) : p_(p) {
    const DeepRule& r = p.rule;
    const double limit = r.loss_limit < __DBL_MAX__ ? r.loss_limit : __DBL_MAX__;
    rules_ = {T(r.momentum), T(r.weight_decay), T(r.negative_slope), limit, r.normalize};
  }

  // Teams take the next student when they are done with one; there are as many as students, at most.
  void run(const Parallel& parallel) const {
    const int64_t teams = p_.students < parallel.parts ? p_.students : parallel.parts;
    if (teams == 0) return;
    const int64_t members = parallel.parts / teams;
    Arena count;
    lay_out(count);
    const std::align_val_t line{64};
    char* const memory = static_cast<char*>(::operator new(count.used * teams, line));
    std::memset(memory, 0, count.used * teams);
    int64_t next = 0;
    for (int64_t team = 0; team < teams; ++team) {
      Arena arena{memory + team * count.used};
      Team* const made = lay_out(arena);
      made->barrier = Barrier(members);
      set_ones(made->work);
    }
    parallel([&](int part) {
      if (part >= teams * members) return;
      Arena arena{memory + part / members * count.used};
      Team& team = *arena.take<Team>(1);
      const Member me{part % members, members, &team.barrier};
      for (;;) {
        if (me.number == 0) team.student = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
        me.barrier->wait();
        const int64_t k = team.student;
        me.barrier->wait();
        if (k >= p_.students) return;
        if (p_.diverged_step[k] < 0) train(k, team.work, me);
      }
    });
    ::operator delete(memory, line);
  }
};

inline void train_deep(const DeepProblem& problem, const Parallel& parallel) {
  if (problem.scalar == Scalar::f64) return DeepTraining<double>(problem).run(parallel);
  DeepTraining<float>(problem).run(parallel);
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
