#pragma once

namespace fastspec {

// How a kernel asks its host to run `parts` pieces of work, possibly at the same time.
struct Parallel {
  int parts;
  void (*run)(int parts, void (*body)(void* context, int part), void* context);

  template <typename Body>
  void operator()(const Body& body) const {
    run(
        parts, [](void* context, int part) { (*static_cast<const Body*>(context))(part); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

}  // namespace fastspec
