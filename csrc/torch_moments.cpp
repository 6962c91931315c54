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
using MomentsAndLoss = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

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
  const double operations =
      double(problem.samples) * (m + n * networks) * (problem.student.layer.inputs + m + problem.top.outputs);
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

MomentsProblem layer_problem(const Tensor& teacher_input, const Tensor& teacher_weight,
                             const std::optional<Tensor>& teacher_bias, const Tensor& student_input,
                             const Tensor& student_weight, const std::optional<Tensor>& student_bias,
                             double negative_slope) {
  const bool population = student_weight.dim() == 3, own_inputs = student_input.dim() == 3;
  STD_TORCH_CHECK(teacher_input.dim() == 2 && teacher_weight.dim() == 2 && (student_input.dim() == 2 || own_inputs),
                  "fastspec: inputs are [N, inputs], the student's may have networks first");
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
                  "fastspec: teacher and student differ in samples or networks");
  return problem;
}

MomentsAndActivations layer_moments(const Tensor& teacher_input, const Tensor& teacher_weight,
                                    const std::optional<Tensor>& teacher_bias, const Tensor& student_input,
                                    const Tensor& student_weight, const std::optional<Tensor>& student_bias,
                                    double negative_slope, StringHandle precision, bool coactivation,
                                    bool activations) {
  check_precision(precision, teacher_input);
  const bool population = student_weight.dim() == 3;
  MomentsProblem problem = layer_problem(teacher_input, teacher_weight, teacher_bias, student_input, student_weight,
                                         student_bias, negative_slope);
  const int64_t n = problem.student.nodes;
  const Shape none{{0}, 1}, shared{{problem.samples, n}, 2}, own{{problem.student.networks, problem.samples, n}, 3};
  const int32_t type = type_of(teacher_input);
  Tensor teacher = empty(activations ? Shape{{problem.samples, problem.teacher.nodes}, 2} : none, type);
  Tensor student = empty(!activations ? none : population ? own : shared, type);
  if (activations) problem.teacher.activation = teacher.data_ptr(), problem.student.activation = student.data_ptr();
  return std::tuple_cat(run(problem, population, coactivation), std::tuple(teacher, student));
}

// A layer of outputs above `nodes` nodes, [*networks, outputs, nodes] and [*networks, outputs], in one piece.
struct OutputTensors {
  Tensor weight;
  std::optional<Tensor> bias;

  OutputTensors(const Tensor& weight_of, const std::optional<Tensor>& bias_of, const Side& side, bool population,
                int64_t outputs, const Tensor& input)
      : weight(in_one_piece(weight_of)) {
    check_alike(weight_of, input);
    const auto networks_of = [&](const Tensor& tensor) { return population ? tensor.size(0) : 1; };
    STD_TORCH_CHECK(weight_of.dim() == 2 + population && networks_of(weight_of) == side.networks &&
                        weight_of.size(population) == outputs && weight_of.size(population + 1) == side.nodes,
                    "fastspec: weights of outputs are [*networks, outputs, nodes]");
    if (!bias_of) return;
    check_alike(*bias_of, input);
    STD_TORCH_CHECK(bias_of->dim() == 1 + population && networks_of(*bias_of) == side.networks &&
                        bias_of->size(population) == outputs,
                    "fastspec: biases of outputs are [*networks, outputs]");
    bias = in_one_piece(*bias_of);
  }

  const void* bias_at() const { return bias ? bias->data_ptr() : nullptr; }
};

MomentsAndLoss moments_and_loss(const Tensor& teacher_input, const Tensor& teacher_weight,
                                const std::optional<Tensor>& teacher_bias, const Tensor& student_input,
                                const Tensor& student_weight, const std::optional<Tensor>& student_bias,
                                const Tensor& teacher_top, const std::optional<Tensor>& teacher_top_bias,
                                const Tensor& student_top, const std::optional<Tensor>& student_top_bias,
                                double negative_slope, bool coactivation) {
  const bool population = student_weight.dim() == 3;
  MomentsProblem problem = layer_problem(teacher_input, teacher_weight, teacher_bias, student_input, student_weight,
                                         student_bias, negative_slope);
  STD_TORCH_CHECK((problem.scalar == Scalar::f32 || problem.scalar == Scalar::f64) && teacher_top.dim() == 2,
                  "fastspec::moments_and_loss takes float32 or float64, and one teacher");
  const int64_t outputs = teacher_top.size(0);
  const OutputTensors teacher(teacher_top, teacher_top_bias, problem.teacher, false, outputs, teacher_input);
  const OutputTensors student(student_top, student_top_bias, problem.student, population, outputs, teacher_input);
  Tensor loss = empty({{problem.student.networks}, population}, aoti_torch_dtype_float64());
  torch::stable::zero_(loss);
  problem.top = {teacher.weight.data_ptr(), teacher.bias_at(), student.weight.data_ptr(),
                 student.bias_at(),         outputs,           static_cast<double*>(loss.data_ptr())};
  return std::tuple_cat(run(problem, population, coactivation), std::tuple(loss));
}

}  // namespace
}  // namespace fastspec

STABLE_TORCH_LIBRARY_IMPL(fastspec, CPU, library) {
  library.impl("cross_moments", TORCH_BOX(&fastspec::cross_moments));
  library.impl("layer_moments", TORCH_BOX(&fastspec::layer_moments));
  library.impl("moments_and_loss", TORCH_BOX(&fastspec::moments_and_loss));
}
