// fastspec/_cuda: launches of the CUDA kernels, free of torch: addresses and a stream come from Python.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "launches.h"

namespace {

void two_layer_train(const pybind11::dict& fields, uintptr_t stream) {
  const auto launch = fastspec::block::launch_from(fields);
  const char* const error = fastspec::block::launch_two_layer_sgd(launch, reinterpret_cast<void*>(stream));
  if (error) throw std::runtime_error(std::string("two_layer_sgd could not be launched: ") + error);
}

pybind11::tuple device_facts(int device) {
  fastspec::block::DeviceFacts facts{};
  if (!fastspec::block::device_facts(device, facts)) throw std::runtime_error("there is no GPU of this number");
  return pybind11::make_tuple(facts.multiprocessors, facts.shared_bytes, facts.block_shared_bytes, facts.major);
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The CUDA kernels of fastspec.";
  module.attr("architectures") = FASTSPEC_CUDA_ARCHS;
  module.def("device_facts", &device_facts, pybind11::arg("device"),
             "Multiprocessors, bytes of shared memory of one and of a block, and the major compute capability.");
  module.def("two_layer_train", &two_layer_train, pybind11::arg("fields"), pybind11::arg("stream"),
             "Queues the training of students of one width; fields as in ops/two_layer_sgd/cuda.py.");
}
