// fastspec/_host: what Python may ask of the native code without torch.
#include <pybind11/pybind11.h>

#include "fastspec/instruction_set.h"

void bind_philox(pybind11::module_& module);
void bind_two_layer_sgd(pybind11::module_& module);

PYBIND11_MODULE(_host, module) {
  module.doc() = "Facts about the native build, and the parts of it that need no torch.";
  module.def(
      "build_facts",
      [] {
        pybind11::dict facts;
        facts["compiler"] = "g++ " __VERSION__;
        facts["instruction_set"] = fastspec::name_of(fastspec::choose_instruction_set());
        facts["instruction_set_of_moments"] = fastspec::name_of(fastspec::choose_for_moments());
        facts["largest_instruction_set"] = fastspec::name_of(fastspec::largest_instruction_set());
        return facts;
      },
      "Compiler, the instruction sets in use and the largest that this machine has.");
  bind_philox(module);
  bind_two_layer_sgd(module);
}
