// The memory plans of the CUDA training kernel, and the kernel run by emulated blocks, for Python.
#include "fastspec/block/emulated_block.h"
#include "launches.h"

namespace {

pybind11::dict two_layer_plan(const pybind11::dict& fields) {
  using namespace fastspec::block;
  const Fields f(fields);
  const Plan plan = plan_from(shape_from(f), f);
  pybind11::dict out;
  out["groups"] = plan.groups, out["slices"] = plan.slices, out["ranks"] = plan.ranks,
  out["most_nodes"] = plan.most_nodes;
  out["part"] = plan.part, out["wide"] = plan.wide, out["tile"] = plan.tile, out["threads"] = plan.threads;
  out["sums"] = plan.sums;
  const char* const names[] = {"shared", "activations shared", "global"};
  out["placement"] = names[int(plan.placement)];
  out["shared_bytes"] = plan.shared_bytes, out["global_bytes"] = plan.global_bytes;
  return out;
}

void emulate(const pybind11::dict& fields, int threads) {
  const auto launch = fastspec::block::launch_from(fields);
  pybind11::gil_scoped_release release;
  fastspec::block::emulate(launch, threads > 0 ? threads : int(launch.plan.threads));
}

}  // namespace

void bind_two_layer_sgd(pybind11::module_& module) {
  using pybind11::arg;
  module.def("two_layer_plan", &two_layer_plan, arg("fields"),
             "How a student's training is laid out on a cluster of blocks; fields as in ops/two_layer_sgd/cuda.py.");
  module.def("two_layer_emulate", &emulate, arg("fields"), arg("threads") = 0,
             "The CUDA training kernel on memory of the CPU, by threads that stand for those of its blocks.");
}
