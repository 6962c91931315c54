#pragma once

#include "fastspec/block/two_layer_sgd.h"

namespace fastspec {
namespace block {

struct DeviceFacts {
  int multiprocessors, shared_bytes, block_shared_bytes, major;  // a block's: what a launch may ask for
};

// What the plans need to know of a GPU; false if there is none of this number.
bool device_facts(int device, DeviceFacts& facts);

// Queues a launch on a CUDA stream of the current device; what went wrong, or null.
const char* launch_two_layer_sgd(const Launch& launch, void* stream);

}  // namespace block
}  // namespace fastspec
