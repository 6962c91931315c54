// Registers `chain_gram` with torch's dispatcher.
#include "fastspec/chain_gram.h"

#include <vector>

#include "torch_tensors.h"

namespace fastspec {
namespace {

using Tensors = std::vector<Tensor>;

// The layers of one network or a population, and contiguous tensors that they point into.
struct Network {
  Tensors kept;
  std::vector<ChainLayer> layers;              // of the first student
  std::vector<int64_t> map_bytes, gate_bytes;  // from one student to the next; 0 where there is no population

  Network(const Tensors& maps, const Tensors& gates, int64_t samples, int64_t outputs, const Tensor& first) {
    STD_TORCH_CHECK(!maps.empty() && maps.size() == gates.size(), "fastspec::chain_gram: a gate for every map");
    const int64_t axes = maps[0].dim();
    int64_t above = outputs;
    for (size_t i = maps.size(); i-- > 0;) {
      const Tensor &map = maps[i], &gate = gates[i];
      check_alike(map, first), check_alike(gate, first);
      STD_TORCH_CHECK(map.dim() == axes && gate.dim() == axes && (axes == 2 || axes == 3) &&
                          map.size(axes - 2) == above && gate.size(axes - 2) == samples &&
                          gate.size(axes - 1) == map.size(axes - 1) &&
                          (axes == 2 || (map.size(0) == maps[0].size(0) && gate.size(0) == maps[0].size(0))),
                      "fastspec::chain_gram: maps [nodes above, nodes] and gates [samples, nodes]");
      above = map.size(axes - 1);
    }
    for (size_t i = 0; i < maps.size(); ++i) {
      const int64_t nodes = maps[i].size(axes - 1), size = scalar_of(first) == Scalar::f64 ? 8 : 4;
      kept.push_back(in_one_piece(maps[i])), kept.push_back(in_one_piece(gates[i]));
      layers.push_back({kept[2 * i].data_ptr(), kept[2 * i + 1].data_ptr(), nodes});
      map_bytes.push_back(axes == 3 ? maps[i].size(1) * nodes * size : 0);
      gate_bytes.push_back(axes == 3 ? samples * nodes * size : 0);
    }
  }

  std::vector<ChainLayer> student(int64_t k) const {
    std::vector<ChainLayer> found = layers;
    for (size_t i = 0; i < found.size(); ++i) {
      found[i].map = static_cast<const char*>(found[i].map) + k * map_bytes[i];
      found[i].gates = static_cast<const char*>(found[i].gates) + k * gate_bytes[i];
    }
    return found;
  }
};

Tensors chain_gram(Tensors teacher_maps, Tensors teacher_gates, Tensors student_maps, Tensors student_gates,
                   bool within) {
  STD_TORCH_CHECK(!teacher_maps.empty() && teacher_maps.size() == student_maps.size() &&
                      teacher_maps.size() == teacher_gates.size() && teacher_maps[0].dim() == 2,
                  "fastspec::chain_gram: one teacher, and networks of one depth with a hidden layer");
  const Tensor& first = teacher_maps[0];
  const Scalar scalar = scalar_of(first);
  STD_TORCH_CHECK(scalar == Scalar::f32 || scalar == Scalar::f64, "fastspec::chain_gram takes float32 or float64");
  const Tensor& top = teacher_maps.back();
  STD_TORCH_CHECK(top.dim() == 2 && teacher_gates[0].dim() == 2, "fastspec::chain_gram: a teacher's tensors");
  const int64_t samples = teacher_gates[0].size(0), outputs = top.size(0);
  const Network teacher(teacher_maps, teacher_gates, samples, outputs, first);
  const Network student(student_maps, student_gates, samples, outputs, first);
  const bool population = student_maps[0].dim() == 3;
  const int64_t students = population ? student_maps[0].size(0) : 1, depth = teacher.layers.size();

  const int32_t f64 = aoti_torch_dtype_float64();
  Tensors out;
  double work = 0;
  for (int64_t l = 0; l < depth; ++l) {
    const int64_t m = teacher.layers[l].nodes, n = student.layers[l].nodes;
    out.push_back(population ? empty({{students, m, n}, 3}, f64) : empty({{m, n}, 2}, f64));
    out.push_back(within ? empty({{m, m}, 2}, f64) : empty({{0}, 1}, f64));
    out.push_back(!within      ? empty({{0}, 1}, f64)
                  : population ? empty({{students, n, n}, 3}, f64)
                               : empty({{n, n}, 2}, f64));
    work += double(samples) * double(outputs) * double(m + n) * double(m + n);
  }
  const int64_t blocks = (samples + 7) / 8;
  const int64_t threads = work < 1e6 ? 1 : torch::stable::get_num_threads();
  const Parallel parallel{int(std::max<int64_t>(1, std::min(threads, blocks))), run_parts};
  Tensors unused;  // a population without students still has a teacher
  for (int64_t k = 0; k < std::max<int64_t>(1, students); ++k) {
    std::vector<GramMatrices> matrices;
    for (int64_t l = 0; l < depth; ++l) {
      const int64_t m = teacher.layers[l].nodes, n = student.layers[l].nodes;
      const auto matrix = [&](int64_t which) { return static_cast<double*>(out[3 * l + which].data_ptr()); };
      if (!students) unused.push_back(empty({{m, m}, 2}, f64));
      double* const cross = students ? matrix(0) + k * m * n : static_cast<double*>(unused.back().data_ptr());
      matrices.push_back({cross, matrix(1), matrix(2) + (within ? k * n * n : 0)});
    }
    const std::vector<ChainLayer> layers = students ? student.student(k) : teacher.layers;
    compute_chain_gram({scalar, samples, outputs, depth, teacher.layers.data(), layers.data(), matrices.data(),
                        within && k == 0, within && students > 0},
                       parallel);
  }
  return out;
}

}  // namespace
}  // namespace fastspec

STABLE_TORCH_LIBRARY_IMPL(fastspec, CPU, library) { library.impl("chain_gram", TORCH_BOX(&fastspec::chain_gram)); }
