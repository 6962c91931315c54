// Which nodes a panel has, and how they go back to arrays of their networks.
#pragma once

#include <type_traits>

#include "strided.h"

namespace fastspec {
namespace FASTSPEC_ISA {

// Rows of adjacent values from a panel: whole vectors, the last one over part of the one before, or a few pieces.
template <typename T, typename To>
inline void copy_row(const T* from, To* to, int count) {
  if constexpr (std::is_same_v<T, To>) {
    constexpr int lanes = Simd<T>::lanes;
    if (count >= lanes) {
      std::memcpy(to, from, lanes * sizeof(T));
      std::memcpy(to + count - lanes, from + count - lanes, lanes * sizeof(T));
      return;
    }
    const auto piece = [&](auto size) {
      constexpr int values = decltype(size)::value;
      if (!(count & values)) return;
      std::memcpy(to, from, values * sizeof(T));
      from += values, to += values;
    };
    piece(std::integral_constant<int, 8>{}), piece(std::integral_constant<int, 4>{});
    piece(std::integral_constant<int, 2>{}), piece(std::integral_constant<int, 1>{});
  } else {
    for (int i = 0; i < count; ++i) to[i] = cast<To>(from[i]);
  }
}

template <typename T>
struct PanelColumns {
  static constexpr int columns = Tile<T>::columns;

  int64_t network[columns], node[columns];
  int width;

  // Those of a panel of a side whose networks come in groups of `group_nodes` nodes.
  static PanelColumns of(const Side& side, int64_t panel, int64_t group_nodes, int64_t group_panels) {
    PanelColumns c;
    const int64_t group = panel / group_panels, first = panel % group_panels * columns;
    c.width = int(clamp(group_nodes - first, 0, columns));
    for (int i = 0; i < c.width; ++i) {
      const int64_t column = group * group_nodes + first + i;
      c.network[i] = column / side.nodes, c.node[i] = column % side.nodes;
    }
    return c;
  }

  // Of a panel's two vectors, those that nodes lie in.
  int vectors() const { return width > Simd<T>::lanes ? 2 : 1; }

  // From the panel to out(network), [rows, nodes].
  template <typename Out>
  void copy_out(const T* panel, int64_t rows, int64_t nodes, const Out& out) const {
    for (int i = 0; i < width;) {  // the nodes of one network after the other
      const int count = int(clamp(nodes - node[i], 0, width - i));
      auto* to = out(network[i]) + node[i];
      for (int64_t r = 0; r < rows; ++r, to += nodes) copy_row(panel + r * columns + i, to, count);
      i += count;
    }
  }
};

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
