// A launch of the training kernel, from Python.
#pragma once

#include <pybind11/pybind11.h>

#include "fastspec/block/two_layer_sgd.h"

namespace fastspec {
namespace block {

// Addresses, sizes and numbers by name, as fastspec/ops/two_layer_sgd/cuda.py gives them.
class Fields {
  const pybind11::dict& fields_;

 public:
  explicit Fields(const pybind11::dict& fields) : fields_(fields) {}

  template <typename T>
  T get(const char* name) const {
    if (!fields_.contains(name)) throw pybind11::key_error(name);
    return fields_[name].cast<T>();
  }
  int64_t size(const char* name) const { return get<int64_t>(name); }
  template <typename T = void>
  T* address(const char* name) const {
    return reinterpret_cast<T*>(get<uintptr_t>(name));
  }
  Packed packed(const char* name) const {
    const auto parts = get<pybind11::tuple>(name);
    const auto part = [&](int i) { return reinterpret_cast<void*>(parts[i].cast<uintptr_t>()); };
    return {part(0), part(1), part(2), part(3)};
  }
};

inline Shape shape_from(const Fields& f) {
  return {f.size("inputs"),        f.size("outputs"),     f.size("nodes"),        f.size("batch"),
          f.size("teacher_nodes"), f.size("value_bytes"), f.get<bool>("momentum")};
}

inline Plan plan_from(const Shape& shape, const Fields& f) {
  return make_plan(shape, {f.size("shared_limit"), f.size("ranks_limit")}, f.size("ranks"));
}

inline Launch launch_from(const pybind11::dict& fields) {
  const Fields f(fields);
  Launch launch{};
  launch.shape = shape_from(f), launch.plan = plan_from(launch.shape, f);
  launch.students = f.address<const int64_t>("students"), launch.count = f.size("count");
  launch.memory = f.address<char>("memory");
  launch.shared_bytes = larger(launch.plan.shared_bytes, f.size("shared_bytes"));
  TrainingProblem& p = launch.problem;
  p.scalar = launch.shape.value_bytes == 8 ? Scalar::f64 : Scalar::f32;
  p.samples = f.size("samples"), p.inputs = launch.shape.inputs, p.outputs = launch.shape.outputs;
  p.steps = f.size("steps");
  p.x = {f.address("x"), f.size("x_stride")}, p.y = {f.address("y"), f.size("y_stride")};
  p.weights = f.packed("weights"), p.buffers = f.packed("buffers"), p.teacher = f.packed("teacher");
  p.teacher_nodes = launch.shape.teacher_nodes;
  p.offsets = f.address<const int64_t>("offsets"), p.lr = f.address<const double>("lr");
  p.multipliers = f.address<const double>("multipliers"), p.seeds = f.address<const int64_t>("seeds");
  p.diverged_step = f.address<int64_t>("diverged_step");
  p.batches = {f.address<const int64_t>("indices"),
               f.size("student_stride"),
               f.size("step_stride"),
               f.size("batch_size"),
               f.size("first_step"),
               f.get<double>("fresh_std")};
  p.rule = {f.get<double>("momentum_factor"), f.get<double>("weight_decay"), f.get<double>("negative_slope"),
            f.get<double>("loss_limit"),      f.get<bool>("bias"),           f.get<bool>("normalize"),
            f.get<bool>("fixed_first"),       f.get<bool>("fixed_top")};
  return launch;
}

}  // namespace block
}  // namespace fastspec
