// Many steps of one student on a cluster of blocks: its weights stay in the blocks' memory for all of them.
#pragma once

#include "fastspec/block/batches.h"

namespace fastspec {
namespace block {

// Students of one width, all trained by the same plan.
struct Launch {
  TrainingProblem problem;
  Shape shape;
  Plan plan;
  const int64_t* students;  // [count]
  int64_t count;
  char* memory;          // plan.global_bytes for each block
  int64_t shared_bytes;  // that each block asks for, at least those of the plan
};

template <typename T, int tile, typename Block>
class Training {
  static constexpr int64_t saved_steps = 64;  // between copies of the weights that a diverged student goes back to

  Block block_;
  const TrainingProblem& problem_;
  const Shape& shape_;
  const Plan& plan_;
  Arrays<T> a_;
  StepRule<T> rule_;
  int student_, begin_, nodes_;  // the nodes of this block
  Step<T, tile, Block> step_;
  BatchReader<T, tile, Block> batches_;

  FASTSPEC_HD static StepRule<T> rule_of(const Rule& r) {
    return {T(r.momentum), T(r.weight_decay), T(r.negative_slope), r.bias, r.normalize, !r.fixed_first, !r.fixed_top};
  }

  // The limit of a batch's mean loss as one of its sum of squares; whatever it is, an infinite sum is beyond it.
  FASTSPEC_HD double limit() const {
    constexpr double largest = 1.7976931348623157e308, largest_loss = sizeof(T) == 4 ? 3.4028234663852886e38 : largest;
    const double given = problem_.rule.loss_limit, factor = 2 * double(shape_.batch);
    const double loss = given < largest_loss ? given : largest_loss;
    return loss < largest / factor ? loss * factor : largest;
  }

  FASTSPEC_HD Strip strip(int columns, int rows) const {
    return strip_of<T>(block_.thread(), columns, rows, strips_of<T>(columns, rows, block_.threads()));
  }

  // Calls body(given, own) for each value of this block's nodes in packed arrays and in `network`.
  template <typename Body>
  FASTSPEC_HD void each_pair(const Packed& packed, const Network<T>& network, const Body& body) const {
    const int64_t d = shape_.inputs, outputs = shape_.outputs, start = problem_.offsets[student_] + begin_;
    const int64_t in_row = first_row(plan_), out_row = top_row(shape_);
    T* const w1 = static_cast<T*>(packed.w1) + start * d;
    T* const w2 = static_cast<T*>(packed.w2) + start * outputs;
#pragma unroll 1
    for (int64_t i = block_.thread(); i < nodes_ * d; i += block_.threads()) {
      body(w1[i], network.first[i % d * in_row + i / d]);
    }
#pragma unroll 1
    for (int64_t i = block_.thread(); i < nodes_ * outputs; i += block_.threads()) {
      body(w2[i], network.top[i / outputs * out_row + i % outputs]);
    }
    T* const b1 = static_cast<T*>(packed.b1) + start;
#pragma unroll 1
    for (int64_t j = block_.thread(); j < nodes_ * rule_.bias; j += block_.threads()) {
      body(b1[j], network.first[d * in_row + j]);
    }
  }

  // The same for the bias of the outputs, which every block has.
  template <typename Body>
  FASTSPEC_HD void each_top_bias(const Packed& packed, const Network<T>& network, const Body& body) const {
    T* const b2 = static_cast<T*>(packed.b2) + student_ * shape_.outputs;
#pragma unroll 1
    for (int64_t c = block_.thread(); c < shape_.outputs * rule_.bias; c += block_.threads()) {
      body(b2[c], network.top[nodes_ * top_row(shape_) + c]);
    }
  }

  FASTSPEC_HD void take(const Packed& packed, const Network<T>& network) const {
    const auto copy = [](const T& given, T& own) { own = given; };
    each_pair(packed, network, copy), each_top_bias(packed, network, copy);
  }
  FASTSPEC_HD void put_back(const Packed& packed, const Network<T>& network) const {
    const auto copy = [](T& given, const T& own) { given = own; };
    each_pair(packed, network, copy);
    if (block_.rank() == 0) each_top_bias(packed, network, copy);
  }

  // Every value of a network, the unused ones too, of each layer.
  template <typename Body>
  FASTSPEC_HD void each(const Body& body) const {
    const int64_t first = (shape_.inputs + 1) * first_row(plan_), top = (plan_.most_nodes + 1) * top_row(shape_);
#pragma unroll 1
    for (int64_t i = block_.thread(); i < first; i += block_.threads()) body(&Network<T>::first, i);
#pragma unroll 1
    for (int64_t i = block_.thread(); i < top; i += block_.threads()) body(&Network<T>::top, i);
  }
  FASTSPEC_HD void clear(const Network<T>& n) const {
    each([&](T* Network<T>::* layer, int64_t i) { (n.*layer)[i] = 0; });
  }
  FASTSPEC_HD void copy(const Network<T>& from, const Network<T>& to) const {
    each([&](T* Network<T>::* layer, int64_t i) { (to.*layer)[i] = (from.*layer)[i]; });
  }

  FASTSPEC_HD bool finite() const {
    T sum = 0;
    each([&](T* Network<T>::* layer, int64_t i) { sum += (a_.weights.*layer)[i] * T(0); });
    return !block_.any(!(sum == 0));
  }
  FASTSPEC_HD void save() const {
    copy(a_.weights, a_.saved);
    if (shape_.momentum) copy(a_.sums, a_.saved_sums);
  }
  FASTSPEC_HD void restore() const {
    copy(a_.saved, a_.weights);
    if (shape_.momentum) copy(a_.saved_sums, a_.sums);
  }

  // False when the batch loss is beyond the limit or not finite; the weights have changed all the same.
  FASTSPEC_HD bool make_step(int64_t t) const {
    const int parts = batches_.parts;
    const T eta = T(problem_.multipliers ? problem_.multipliers[t] * *a_.rate : *a_.rate);
    for (int part = 0; part < parts; ++part) {
      const bool odd = (t * parts + part) % 2;
      batches_.draw(step_, t, part);
      step_.run(eta, Part{odd, batches_.samples(part), part == 0, part + 1 == parts}, batches_.after(odd, t, part));
    }
    return !*a_.bad;
  }

  // All steps; the one at which the student diverged, or -1. A weight that is not finite makes the next batch loss not
  // finite, so that weights need no look at every step. A step that must not be is undone by making those before it
  // again, from the last copy of the weights.
  FASTSPEC_HD int64_t all_steps() const {
    int64_t t = 0, stop = problem_.steps;
    batches_.begin(t);
    for (;;) {
      bool good = true;
      if (t % saved_steps == 0 || t == stop) {
        good = finite();
        if (good && t == stop) return stop < problem_.steps ? stop : -1;
        if (good) save();
        if (!good && t-- == 0) return 0;
      }
      if (good && make_step(t)) {
        ++t;
        continue;
      }
      stop = t, t -= t % saved_steps;
      restore();
      batches_.begin(t);
    }
  }

 public:
  // `index`: of this cluster in the launch.
  FASTSPEC_HD Training(const Block& block, const Launch& launch, const Arrays<T>& arrays, int64_t index)
      : block_(block),
        problem_(launch.problem),
        shape_(launch.shape),
        plan_(launch.plan),
        a_(arrays),
        rule_(rule_of(launch.problem.rule)),
        student_(int(launch.students[index])),
        begin_(int(group_begin(shape_.nodes, plan_.groups, block.rank() * plan_.own_groups))),
        nodes_(int(group_begin(shape_.nodes, plan_.groups, (block.rank() + 1) * plan_.own_groups) - begin_)),
        step_{block_,
              shape_,
              plan_,
              rule_,
              a_,
              nodes_,
              place_of<tile / 2>(block.thread(), nodes_, int(plan_.wide)),
              place_of<tile / 2>(block.thread(), int(shape_.outputs), int(plan_.wide)),
              strip(int(shape_.outputs), nodes_ + rule_.bias),
              strip(nodes_, int(shape_.inputs) + rule_.bias)},
        batches_{block_, problem_, shape_, plan_, a_, student_, int(ceil_div(shape_.batch, plan_.part))} {}

  FASTSPEC_HD void run() const {
    if (problem_.diverged_step[student_] >= 0) return;  // the same for all threads: only later is it written
    const bool momentum = shape_.momentum;
    if (block_.thread() == 0) *a_.limit = limit(), *a_.rate = problem_.lr[student_];
    clear(a_.weights);
    if (plan_.sums) clear(a_.sums);
#pragma unroll 1
    for (int64_t i = block_.thread(); i < (shape_.inputs + 1) * plan_.row; i += block_.threads()) {
      const T value = i >= shape_.inputs * plan_.row ? T(1) : T(0);
      a_.x.of(0)[i] = value, a_.x.of(1)[i] = value;
    }
#pragma unroll 1
    for (int64_t i = block_.thread(); i < plan_.row; i += block_.threads()) a_.hidden[nodes_ * plan_.row + i] = T(1);
    block_.sync();
    take(problem_.weights, a_.weights);
    if (momentum) take(problem_.buffers, a_.sums);
    const int64_t diverged = all_steps();
    if (diverged >= 0 && momentum) {
      clear(a_.sums);
      block_.sync();
    }
    put_back(problem_.weights, a_.weights);
    if (momentum) put_back(problem_.buffers, a_.sums);
    if (diverged >= 0 && block_.rank() == 0 && block_.thread() == 0) {
      problem_.diverged_step[student_] = problem_.batches.first + diverged;
    }
  }
};

}  // namespace block
}  // namespace fastspec
