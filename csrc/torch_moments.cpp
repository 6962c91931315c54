// Registers the moments ops with torch's dispatcher.
#include <optional>
#include <string>
#include <tuple>

#include "fastspec/moments.h"
#include "torch_tensors.h"

namespace fastspec {
namespace {

using Moments = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using MomentsAndActivations =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// [*networks, N, columns, *space]; `networks` says whether the first axis is there.
Array array_of(const Tensor& tensor, bool networks) {
  const int64_t lead = networks ? 1 : 0;
  Array array{tensor.data_ptr(), {1, 1, 1, 1}, {0, 0, 0, 0}, tensor.stride(lead + 1), 0};
  if (networks) array.network_stride = tensor.stride(0);
  array.sample_sizes[0] = tensor.size(lead);
  array.sample_strides[0] = tensor.stride(lead);
  for (int64_t axis = lead + 2; axis < tensor.dim(); ++axis) {
    array.sample_sizes[axis - lead - 1] = tensor.size(axis);
    array.sample_strides[axis - lead - 1] = tensor.stride(axis);
  }
  return array;
}

Layer layer_of(const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& input) {
  const int64_t lead = weight.dim() - 2;
  STD_TORCH_CHECK(lead == 0 || lead == 1, "fastspec: a weight is [nodes, inputs] or [networks, nodes, inputs]");
  STD_TORCH_CHECK(weight.size(lead + 1) == input.size(input.dim() - 1), "fastspec: weight and input differ in width");
  check_alike(weight, input);
  Layer layer{
      weight.data_ptr(),    lead ? weight.stride(0) : 0, weight.stride(lead), weight.stride(lead + 1), nullptr, 0, 0,
      weight.size(lead + 1)};
  if (bias) {
    check_alike(*bias, input);
    STD_TORCH_CHECK(bias->dim() == lead + 1 && bias->size(lead) == weight.size(lead) &&
                        (lead == 0 || bias->size(0) == weight.size(0)),
                    "fastspec: a bias has the shape of its weight's nodes");
    layer.bias = bias->data_ptr();
    layer.bias_network_stride = lead ? bias->stride(0) : 0;
    layer.bias_node_stride = bias->stride(lead);
  }
  return layer;
}

// Allocates the outputs, runs the pass, returns them.
Moments run(MomentsProblem& problem, bool population, bool coactivation) {
  const int64_t networks = problem.student.networks, m = problem.teacher.nodes, n = problem.student.nodes;
  const Shape teacher{{m}, 1}, none{{0}, 1};
  const Shape student = population ? Shape{{networks, n}, 2} : Shape{{n}, 1};
  const Shape cross = population ? Shape{{networks, m, n}, 3} : Shape{{m, n}, 2};
  const int32_t f64 = aoti_torch_dtype_float64(), i64 = aoti_torch_dtype_int64();
  Moments out{empty(teacher, f64), empty(student, f64), empty(teacher, f64), empty(student, f64),
              empty(cross, f64),   empty(teacher, i64), empty(student, i64), empty(coactivation ? cross : none, i64)};
  const auto f64_ptr = [](const Tensor& t) { return static_cast<double*>(t.data_ptr()); };
  const auto i64_ptr = [](const Tensor& t) { return static_cast<int64_t*>(t.data_ptr()); };
  problem.teacher_mean = f64_ptr(std::get<0>(out)), problem.student_mean = f64_ptr(std::get<1>(out));
  problem.teacher_scatter = f64_ptr(std::get<2>(out)), problem.student_scatter = f64_ptr(std::get<3>(out));
  problem.cross_scatter = f64_ptr(std::get<4>(out));
  problem.teacher_active = i64_ptr(std::get<5>(out)), problem.student_active = i64_ptr(std::get<6>(out));
  problem.coactive = coactivation ? i64_ptr(std::get<7>(out)) : nullptr;
  if (problem.samples == 0) {
    std::apply([](auto&... tensor) { (torch::stable::zero_(tensor), ...); }, out);
    return out;
  }
  const double operations = double(problem.samples) * (m + n * networks) * (problem.student.layer.inputs + m);
  const int parts = operations < 1e6 ? 1 : int(torch::stable::get_num_threads());
  compute_moments(problem, {parts, run_parts});
  return out;
}

int64_t samples_of(const Array& array) {
  return array.sample_sizes[0] * array.sample_sizes[1] * array.sample_sizes[2] * array.sample_sizes[3];
}

Moments cross_moments(const Tensor& teacher, const Tensor& student, StringHandle precision, bool coactivation) {
  check_precision(precision, teacher);
  const bool population = student.dim() == teacher.dim() + 1;
  STD_TORCH_CHECK(teacher.dim() >= 2 && teacher.dim() <= 5 && student.dim() - population == teacher.dim(),
                  "fastspec::cross_moments: activations are [N, nodes, *space], with networks first for the student");
  check_alike(student, teacher);
  MomentsProblem problem{};
  problem.scalar = scalar_of(teacher);
  problem.teacher = {array_of(teacher, false), {}, 1, teacher.size(1), nullptr};
  problem.student = {
      array_of(student, population), {}, population ? student.size(0) : 1, student.size(population + 1), nullptr};
  for (int axis = 0; axis < 4; ++axis) {
    STD_TORCH_CHECK(problem.teacher.array.sample_sizes[axis] == problem.student.array.sample_sizes[axis],
                    "fastspec::cross_moments: teacher and student differ in samples or positions");
  }
  problem.samples = samples_of(problem.teacher.array);
  return run(problem, population, coactivation);
}

MomentsAndActivations layer_moments(const Tensor& teacher_input, const Tensor& teacher_weight,
                                    const std::optional<Tensor>& teacher_bias, const Tensor& student_input,
                                    const Tensor& student_weight, const std::optional<Tensor>& student_bias,
                                    double negative_slope, StringHandle precision, bool coactivation,
                                    bool activations) {
  check_precision(precision, teacher_input);
  const bool population = student_weight.dim() == 3, own_inputs = student_input.dim() == 3;
  STD_TORCH_CHECK(teacher_input.dim() == 2 && teacher_weight.dim() == 2 && (student_input.dim() == 2 || own_inputs),
                  "fastspec::layer_moments: inputs are [N, inputs], the student's may have networks first");
  check_alike(student_input, teacher_input);
  MomentsProblem problem{};
  problem.scalar = scalar_of(teacher_input);
  problem.layered = true;
  problem.negative_slope = negative_slope;
  problem.teacher = {array_of(teacher_input, false), layer_of(teacher_weight, teacher_bias, teacher_input), 1,
                     teacher_weight.size(0), nullptr};
  problem.student = {array_of(student_input, own_inputs), layer_of(student_weight, student_bias, student_input),
                     population ? student_weight.size(0) : 1, student_weight.size(population), nullptr};
  problem.samples = teacher_input.size(0);
  STD_TORCH_CHECK(student_input.size(own_inputs) == problem.samples &&
                      (!own_inputs || (population && student_input.size(0) == student_weight.size(0))),
                  "fastspec::layer_moments: teacher and student differ in samples or networks");
  const int64_t n = problem.student.nodes;
  const Shape none{{0}, 1}, shared{{problem.samples, n}, 2}, own{{problem.student.networks, problem.samples, n}, 3};
  const int32_t type = type_of(teacher_input);
  Tensor teacher = empty(activations ? Shape{{problem.samples, problem.teacher.nodes}, 2} : none, type);
  Tensor student = empty(!activations ? none : population ? own : shared, type);
  if (activations) problem.teacher.activation = teacher.data_ptr(), problem.student.activation = student.data_ptr();
  return std::tuple_cat(run(problem, population, coactivation), std::tuple(teacher, student));
}

}  // namespace
}  // namespace fastspec

STABLE_TORCH_LIBRARY_IMPL(fastspec, CPU, library) {
  library.impl("cross_moments", TORCH_BOX(&fastspec::cross_moments));
  library.impl("layer_moments", TORCH_BOX(&fastspec::layer_moments));
}
