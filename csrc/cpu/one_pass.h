// One pass over the samples. Rounds of chunks; in each round first the teacher's chunks, then every student panel
// against them. Who computes a panel does not change what is computed: results do not depend on the threads.
#pragma once

#include "cross_moments.h"
#include "layer_moments.h"
#include "losses.h"

namespace fastspec {
namespace FASTSPEC_ISA {

template <typename T, typename Stored>
class OnePass {
  using P = Plan<T>;
  using Columns = PanelColumns<T>;
  using Sums = typename Workspace<T>::Sums;
  using Scratch = typename Workspace<T>::Scratch;
  static constexpr int tile_rows = P::tile_rows, columns = P::columns;

  const MomentsProblem& problem_;
  const Parallel& parallel_;
  const P plan_;
  Workspace<T> work_;
  const Losses<T> losses_;

  int64_t first_row(int64_t chunk) const { return chunk * plan_.rows; }
  int64_t rows_of(int64_t chunk) const { return clamp(problem_.samples - first_row(chunk), 0, plan_.rows); }

  Columns teacher_columns(int64_t panel) const {
    return Columns::of(problem_.teacher, panel, problem_.teacher.nodes, plan_.teacher_panels);
  }
  Columns student_columns(int64_t panel) const {
    return Columns::of(problem_.student, panel, plan_.group_nodes, plan_.group_panels);
  }

  static void pack_layer(const Side& side, const Columns& c, T* weights, T* bias) {
    const Layer& layer = side.layer;
    int64_t at[columns] = {};
    for (int i = 0; i < c.width; ++i) at[i] = c.network[i] * layer.network_stride + c.node[i] * layer.node_stride;
    pack_weights(static_cast<const Stored*>(layer.weight), at, c.width, layer.input_stride, layer.inputs, weights);
    const Stored* const stored = static_cast<const Stored*>(layer.bias);
    for (int i = 0; i < columns; ++i) {
      const bool here = stored && i < c.width;
      bias[i] = here ? T(stored[c.network[i] * layer.bias_network_stride + c.node[i] * layer.bias_node_stride]) : T(0);
    }
  }

  static void pack_chunk(const Array& array, int64_t network, int64_t first, int64_t rows, int64_t depth,
                         int64_t* rows_at, T* out) {
    sample_offsets(array, first, rows, rows_at);
    const Stored* const data = static_cast<const Stored*>(array.data) + network * array.network_stride;
    pack_inputs(data, rows_at, rows, array.column_stride, depth, out);
  }

  // The raw activations of one panel over one chunk; the op's own part.
  void fill_panel(const Side& side, const Columns& c, int64_t first, int64_t rows, const T* inputs, const T* weights,
                  const T* bias, Scratch& scratch) const {
    if (plan_.layer) {
      by_count<2>(c.vectors(), [&](auto vectors) {
        activate_panel<vectors.of>(inputs, weights, bias, side.layer.inputs, rows, T(problem_.negative_slope),
                                   scratch.panel);
      });
      if (side.activation) {
        c.copy_out(scratch.panel, rows, side.nodes, [&](int64_t network) {
          return static_cast<Stored*>(side.activation) + (network * problem_.samples + first) * side.nodes;
        });
      }
      return;
    }
    int64_t at[columns] = {};
    for (int i = 0; i < c.width; ++i) {
      at[i] = c.network[i] * side.array.network_stride + c.node[i] * side.array.column_stride;
    }
    sample_offsets(side.array, first, rows, scratch.rows_at);
    gather_panel(static_cast<const Stored*>(side.array.data), scratch.rows_at, rows, at, c.width, scratch.panel);
  }

  // The panel's nodes, from `node` on, to their places in the tiles, [tile, row, node in tile].
  void pack_teacher(const T* panel, int64_t node, int64_t rows, T* packed) const {
    const int64_t end = clamp(plan_.teacher_tiles * tile_rows - node, 0, columns);
    for (int64_t c = 0; c < end;) {
      const int64_t tile = (node + c) / tile_rows, place = (node + c) % tile_rows;
      T* const out = packed + tile * tile_rows * plan_.rows + place;
      by_count<tile_rows>(clamp(tile_rows - place, 0, end - c), [&](auto count) {
        for (int64_t r = 0; r < rows; ++r) {
          std::memcpy(out + r * tile_rows, panel + r * columns + c, count.of * sizeof(T));
        }
        c += count.of;
      });
    }
  }

  void teacher_chunk(int64_t chunk, int64_t at, Scratch& scratch) {
    const P& p = plan_;
    const int64_t first = first_row(chunk), rows = rows_of(chunk);
    T* const inputs = work_.teacher_inputs + at * p.tiled_rows * p.teacher_depth;
    if (p.layer) {
      pack_chunk(problem_.teacher.array, 0, first, rows, p.teacher_depth, scratch.rows_at, inputs);
      if (!p.own_inputs && !p.same_inputs) {
        pack_chunk(problem_.student.array, 0, first, rows, p.student_depth, scratch.rows_at,
                   work_.student_inputs + at * p.tiled_rows * p.student_depth);
      }
    }
    T* const packed = work_.teacher + at * p.padded * p.rows;
    PanelStatistics<T>& s = scratch.statistics;
    for (int64_t panel = 0; panel < p.teacher_panels; ++panel) {
      const int64_t node = panel * columns;
      const Columns nodes = teacher_columns(panel);
      fill_panel(problem_.teacher, nodes, first, rows, inputs, work_.teacher_weights + node * p.teacher_depth,
                 work_.teacher_bias + node, scratch);
      if (chunk == 0)
        for (int c = 0; c < columns; ++c) work_.teacher_reference[node + c] = scratch.panel[c];
      if (p.loss) {
        nodes.copy_out(scratch.panel, rows, problem_.teacher.nodes, [&](int64_t) { return scratch.activations; });
      }
      if (p.coactive) gate_bits(scratch.panel, rows, p.words, work_.teacher_gates + (at * p.padded + node) * p.words);
      center_panel(scratch.panel, rows, s);
      for (int c = 0; c < columns; ++c) {
        const int64_t j = at * p.padded + node + c;
        work_.chunk_shift[j] = s.shift[c], work_.chunk_sum[j] = s.sum[c];
        work_.chunk_square[j] = s.square[c], work_.chunk_active[j] = s.active[c];
      }
      pack_teacher(scratch.panel, node, rows, packed);
    }
    for (int64_t j = p.teacher_panels * columns; j < p.teacher_tiles * tile_rows; ++j) {  // nodes that do not exist
      T* const column = packed + j / tile_rows * tile_rows * p.rows + j % tile_rows;
      for (int64_t r = 0; r < rows; ++r) column[r * tile_rows] = T(0);
      work_.chunk_shift[at * p.padded + j] = work_.chunk_sum[at * p.padded + j] = 0;
    }
    if (p.loss) losses_.answer(at, rows, scratch);
  }

  // In order of chunks: the teacher's statistics, and its tiles' view of every chunk.
  void add_teacher(int64_t chunk, int64_t at, bool first_slab) {
    const int64_t rows = rows_of(chunk);
    for (int64_t j = 0; j < plan_.teacher_tiles * tile_rows; ++j) {
      const int64_t i = at * plan_.padded + j;
      const double offset = work_.chunk_shift[i] - work_.teacher_reference[j], sum = work_.chunk_sum[i];
      TileMoments& tile = work_.tiles[at * plan_.teacher_tiles + j / tile_rows];
      tile.offset[j % tile_rows] = offset, tile.sum[j % tile_rows] = sum;
      if (!first_slab || j >= problem_.teacher.nodes) continue;
      work_.teacher_sum[j] += sum + rows * offset;
      work_.teacher_square[j] += work_.chunk_square[i] + 2 * offset * sum + rows * offset * offset;
      work_.teacher_active[j] += work_.chunk_active[i];
    }
  }

  void student_panel(int64_t slab_first, int64_t panel, int64_t chunk, int64_t at, const T* inputs, Sums& sums,
                     Scratch& scratch) const {
    const P& p = plan_;
    const int64_t rows = rows_of(chunk), column = panel * columns;
    const Columns nodes = student_columns(slab_first + panel);
    fill_panel(problem_.student, nodes, first_row(chunk), rows, inputs,
               work_.student_weights + column * p.student_depth, work_.student_bias + column, scratch);
    if (p.loss) losses_.add(nodes, at, rows, sums, scratch);
    if (p.coactive) {
      gate_bits(scratch.panel, rows, p.words, scratch.gates);
      count_coactive(work_.teacher_gates + at * p.padded * p.words, problem_.teacher.nodes, scratch.gates, columns,
                     p.words, sums.coactive + column * problem_.teacher.nodes);
    }
    PanelStatistics<T>& s = scratch.statistics;
    center_panel(scratch.panel, rows, s);
    double offset[columns], total[columns];
    for (int c = 0; c < columns; ++c) {
      offset[c] = s.shift[c] - work_.student_reference[column + c];
      total[c] = s.sum[c] + rows * offset[c];
      sums.sum[column + c] += total[c];
      sums.square[column + c] += s.square[c] + 2 * offset[c] * s.sum[c] + rows * offset[c] * offset[c];
      sums.active[column + c] += s.active[c];
    }
    by_count<2>(nodes.vectors(), [&](auto vectors) {
      for (int64_t tile = 0; tile < p.teacher_tiles; ++tile) {
        accumulate_tile<vectors.of>(work_.teacher + at * p.padded * p.rows + tile * tile_rows * p.rows, scratch.panel,
                                    rows, work_.tiles[at * p.teacher_tiles + tile], total, offset,
                                    sums.cross + (panel * p.teacher_tiles + tile) * tile_rows * columns);
      }
    });
  }

  // The inputs of one chunk for one panel, packed: shared by all networks, or the panel's own network's.
  const T* inputs_for(int64_t panel, int64_t chunk, int64_t at, int64_t& packed_group, Scratch& scratch) const {
    const P& p = plan_;
    if (!p.own_inputs) return work_.student_inputs + at * p.tiled_rows * p.student_depth;
    const int64_t group = panel / p.group_panels;
    if (group != packed_group) {
      pack_chunk(problem_.student.array, group, first_row(chunk), rows_of(chunk), p.student_depth, scratch.rows_at,
                 scratch.inputs);
      packed_group = group;
    }
    return scratch.inputs;
  }

  // The students' references: their first sample's activations.
  void find_references(int64_t slab_first, int64_t panels) {
    parallel_([&](int part) {
      int64_t packed_group = -1;
      for (int64_t panel = panels * part / parallel_.parts; panel < panels * (part + 1) / parallel_.parts; ++panel) {
        const T* const inputs = inputs_for(slab_first + panel, 0, 0, packed_group, work_.scratch[part]);
        const int64_t column = panel * columns;
        fill_panel(problem_.student, student_columns(slab_first + panel), 0, 1, inputs,
                   work_.student_weights + column * plan_.student_depth, work_.student_bias + column,
                   work_.scratch[part]);
        for (int c = 0; c < columns; ++c) work_.student_reference[column + c] = work_.scratch[part].panel[c];
      }
    });
  }

  void student_round(int64_t slab_first, int64_t panels, int64_t first_chunk, int64_t chunks) {
    const int64_t slots = plan_.slots, unit = plan_.unit, units = ceil_div(panels, unit), tasks = slots * units;
    parallel_([&](int part) {
      const int64_t end = tasks * (part + 1) / parallel_.parts;
      for (int64_t task = tasks * part / parallel_.parts; task < end;) {
        const int64_t slot = task / units, first = task % units;
        const int64_t count = units - first < end - task ? units - first : end - task;
        const int64_t last = clamp((first + count) * unit, 0, panels);
        for (int64_t at = slot; at < chunks; at += slots) {
          int64_t packed_group = -1;
          for (int64_t panel = first * unit; panel < last; ++panel) {
            const T* const inputs =
                inputs_for(slab_first + panel, first_chunk + at, at, packed_group, work_.scratch[part]);
            student_panel(slab_first, panel, first_chunk + at, at, inputs, work_.sums[slot], work_.scratch[part]);
          }
        }
        task += count;
      }
    });
  }

  // Centred statistics from the sums about the references, slots added in order.
  void write_panel(int64_t slab_first, int64_t panel) const {
    const MomentsProblem& p = problem_;
    const Columns c = student_columns(slab_first + panel);
    const int64_t m = p.teacher.nodes, n = p.student.nodes, tiled = plan_.teacher_tiles * tile_rows;
    const double samples = double(p.samples);
    for (int i = 0; i < c.width; ++i) {
      const int64_t column = panel * columns + i, out = c.network[i] * n + c.node[i];
      double sum = 0, square = 0;
      int64_t active = 0;
      for (int64_t slot = 0; slot < plan_.slots; ++slot) {
        sum += work_.sums[slot].sum[column], square += work_.sums[slot].square[column],
            active += work_.sums[slot].active[column];
      }
      p.student_mean[out] = work_.student_reference[column] + sum / samples;
      p.student_scatter[out] = square - sum * sum / samples;
      p.student_active[out] = active;
      for (int64_t j = 0; j < m; ++j) {
        double cross = 0;
        int64_t coactive = 0;
        for (int64_t slot = 0; slot < plan_.slots; ++slot) {
          cross += work_.sums[slot].cross[(panel * tiled + j) * columns + i];
          if (plan_.coactive) coactive += work_.sums[slot].coactive[(panel * m + j) * columns + i];
        }
        const int64_t at = (c.network[i] * m + j) * n + c.node[i];
        p.cross_scatter[at] = cross - work_.teacher_sum[j] * sum / samples;
        if (plan_.coactive) p.coactive[at] = coactive;
      }
    }
  }

  void write_teacher() const {
    const double samples = double(problem_.samples);
    for (int64_t j = 0; j < problem_.teacher.nodes; ++j) {
      problem_.teacher_mean[j] = work_.teacher_reference[j] + work_.teacher_sum[j] / samples;
      problem_.teacher_scatter[j] = work_.teacher_square[j] - work_.teacher_sum[j] * work_.teacher_sum[j] / samples;
      problem_.teacher_active[j] = work_.teacher_active[j];
    }
  }

  void clear_slab(int64_t panels) {
    const int64_t wide = panels * columns, tiled = plan_.teacher_tiles * tile_rows;
    for (int64_t slot = 0; slot < plan_.slots; ++slot) {
      Sums& s = work_.sums[slot];
      std::memset(s.cross, 0, wide * tiled * sizeof(double));
      std::memset(s.sum, 0, wide * sizeof(double));
      std::memset(s.square, 0, wide * sizeof(double));
      std::memset(s.active, 0, wide * sizeof(int64_t));
      if (plan_.coactive) std::memset(s.coactive, 0, wide * problem_.teacher.nodes * sizeof(int64_t));
    }
  }

 public:
  OnePass(const MomentsProblem& problem, const Parallel& parallel)
      : problem_(problem),
        parallel_(parallel),
        plan_(problem),
        work_(problem, plan_, parallel.parts),
        losses_(problem, plan_, work_) {}

  void run() {
    const P& p = plan_;
    for (int64_t j = 0; j < p.padded; ++j) {
      work_.teacher_reference[j] = work_.teacher_sum[j] = work_.teacher_square[j] = 0;
      work_.teacher_active[j] = 0;
    }
    for (int64_t panel = 0; p.layer && panel < p.teacher_panels; ++panel) {
      const int64_t node = panel * columns;
      pack_layer(problem_.teacher, teacher_columns(panel), work_.teacher_weights + node * p.teacher_depth,
                 work_.teacher_bias + node);
    }
    int64_t slab_first = 0;
    do {  // once at least: without student nodes the teacher is measured all the same
      const int64_t panels = clamp(p.panels - slab_first, 0, p.slab);
      clear_slab(panels);
      parallel_([&](int part) {
        for (int64_t panel = panels * part / parallel_.parts; p.layer && panel < panels * (part + 1) / parallel_.parts;
             ++panel) {
          pack_layer(problem_.student, student_columns(slab_first + panel),
                     work_.student_weights + panel * columns * p.student_depth, work_.student_bias + panel * columns);
        }
        if (p.loss && slab_first == 0) losses_.begin(part, parallel_.parts);
      });
      for (int64_t chunk = 0; chunk < p.chunks; chunk += p.round) {
        const int64_t chunks = clamp(p.chunks - chunk, 0, p.round);
        parallel_([&](int part) {
          for (int64_t at = chunks * part / parallel_.parts; at < chunks * (part + 1) / parallel_.parts; ++at) {
            teacher_chunk(chunk + at, at, work_.scratch[part]);
          }
        });
        for (int64_t at = 0; at < chunks; ++at) add_teacher(chunk + at, at, slab_first == 0);
        if (chunk == 0) find_references(slab_first, panels);
        student_round(slab_first, panels, chunk, chunks);
        for (int64_t at = 0; p.loss && at < chunks; ++at) losses_.add_without_nodes(at, rows_of(chunk + at));
      }
      parallel_([&](int part) {
        for (int64_t panel = panels * part / parallel_.parts; panel < panels * (part + 1) / parallel_.parts; ++panel) {
          write_panel(slab_first, panel);
        }
      });
      slab_first += p.slab;
    } while (slab_first < p.panels);
    write_teacher();
    if (p.loss) losses_.write();
  }
};

inline void compute(const MomentsProblem& problem, const Parallel& parallel) {
  switch (problem.scalar) {
    case Scalar::f64: return OnePass<double, double>(problem, parallel).run();
    case Scalar::f32: return OnePass<float, float>(problem, parallel).run();
    case Scalar::f16: return OnePass<float, Half>(problem, parallel).run();
    case Scalar::bf16: return OnePass<float, BFloat16>(problem, parallel).run();
  }
}

}  // namespace FASTSPEC_ISA
}  // namespace fastspec
