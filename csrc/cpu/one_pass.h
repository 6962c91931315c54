// One pass over the samples. Rounds of chunks; in each round first the teacher's chunks, then every student panel
// against them. Who computes a panel does not change what is computed: results do not depend on the threads.
#pragma once

#include <new>

#include "layer_moments.h"

namespace fastspec {
namespace FASTSPEC_ISA {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Hands out aligned pieces of one block; with base == nullptr it only counts.
struct Arena {
  char* base;
  int64_t used;
  template <typename T>
  T* take(int64_t count) {
    T* const at = reinterpret_cast<T*>(base + used);
    used += ceil_div(count * sizeof(T), 64) * 64;
    return at;
  }
};

// Sizes, from shapes alone.
template <typename T>
struct Plan {
  static constexpr int tile_rows = Tile<T>::rows, columns = Tile<T>::columns;
  static constexpr int64_t cache = 320 << 10, round_bytes = 8 << 20, slot_bytes = 16 << 20, slab_bytes = 40 << 20;

  bool layer, coactive, own_inputs;  // own_inputs: every student network has inputs of its own
  int64_t teacher_depth, student_depth, teacher_tiles, teacher_panels, padded;
  int64_t group_nodes, group_panels, panels, slab;  // a panel lies within one group of columns
  int64_t rows, words, chunks, round, slots;        // of a chunk; chunks in all, in a round; sums kept apart

  explicit Plan(const MomentsProblem& p)
      : layer(p.teacher.layer.weight != nullptr),
        coactive(p.coactive != nullptr),
        own_inputs(layer && p.student.array.network_stride != 0 && p.student.networks > 1),
        teacher_depth(layer ? p.teacher.layer.inputs : 0),
        student_depth(layer ? p.student.layer.inputs : 0),
        teacher_tiles(ceil_div(p.teacher.nodes, tile_rows)),
        teacher_panels(ceil_div(p.teacher.nodes, columns)),
        padded(teacher_tiles * tile_rows > teacher_panels * columns ? teacher_tiles * tile_rows : teacher_panels * columns),
        group_nodes(own_inputs ? p.student.nodes : p.student.nodes * p.student.networks),
        group_panels(ceil_div(group_nodes, columns)),
        panels(group_panels * (own_inputs ? p.student.networks : 1)) {
    const int64_t row_bytes = (student_depth + teacher_tiles * tile_rows + columns) * sizeof(T);
    rows = clamp(ceil_div(p.samples, tile_rows) * tile_rows, 1, clamp(cache / row_bytes, 96, 384) / 48 * 48);
    words = ceil_div(rows, 64);
    chunks = ceil_div(p.samples, rows);
    const int64_t chunk_bytes = rows * (student_depth + teacher_depth + padded) * sizeof(T);
    const int64_t sums_bytes = teacher_tiles * tile_rows * columns * (coactive ? 16 : 8);  // of one panel
    slots = clamp(ceil_div(32, panels), 1, clamp(slot_bytes / (panels * sums_bytes), 1, 16));
    if (slots > chunks) slots = chunks;
    round = ceil_div(clamp(round_bytes / chunk_bytes, 1, chunks < 16 ? chunks : 16), slots) * slots;
    slab = clamp(slab_bytes / (slots * sums_bytes + student_depth * columns * int64_t(sizeof(T))), 1, panels);
  }
};

template <typename T, typename Stored>
class OnePass {
  using P = Plan<T>;
  static constexpr int tile_rows = P::tile_rows, columns = P::columns;

  struct Scratch {  // of one part
    T *panel, *inputs;
    int64_t* rows_at;
    uint64_t* gates;
    PanelStatistics<T> statistics;
  };

  struct Columns {  // the nodes of one panel
    int64_t network[columns], node[columns];
    int width;
  };

  struct Sums {  // of one slot: panel-major, `columns` wide
    double *cross, *sum, *square;
    int64_t *active, *coactive;
  };

  const MomentsProblem& problem_;
  const Parallel& parallel_;
  const P plan_;
  Arena arena_;

  T *teacher_weights_, *teacher_bias_, *teacher_inputs_, *teacher_;
  T *student_weights_, *student_bias_, *student_inputs_;
  uint64_t* teacher_gates_;
  TileMoments* tiles_;                                    // [chunk in round, tile]
  double *chunk_shift_, *chunk_sum_, *chunk_square_;      // [chunk in round, padded]
  int64_t* chunk_active_;
  double *teacher_reference_, *teacher_sum_, *teacher_square_;
  int64_t* teacher_active_;
  double* student_reference_;
  Sums* sums_;
  Scratch* scratch_;

  void layout() {
    const P& p = plan_;
    const int64_t tiled_rows = ceil_div(p.rows, tile_rows) * tile_rows, wide = p.slab * columns;
    teacher_weights_ = arena_.take<T>(p.teacher_panels * columns * p.teacher_depth);
    teacher_bias_ = arena_.take<T>(p.teacher_panels * columns);
    teacher_inputs_ = arena_.take<T>(p.round * tiled_rows * p.teacher_depth);
    student_inputs_ = arena_.take<T>(p.own_inputs ? 0 : p.round * tiled_rows * p.student_depth);
    teacher_ = arena_.take<T>(p.round * p.padded * p.rows);
    teacher_gates_ = arena_.take<uint64_t>(p.coactive ? p.round * p.padded * p.words : 0);
    tiles_ = arena_.take<TileMoments>(p.round * p.teacher_tiles);
    chunk_shift_ = arena_.take<double>(p.round * p.padded);
    chunk_sum_ = arena_.take<double>(p.round * p.padded);
    chunk_square_ = arena_.take<double>(p.round * p.padded);
    chunk_active_ = arena_.take<int64_t>(p.round * p.padded);
    teacher_reference_ = arena_.take<double>(p.padded);
    teacher_sum_ = arena_.take<double>(p.padded);
    teacher_square_ = arena_.take<double>(p.padded);
    teacher_active_ = arena_.take<int64_t>(p.padded);
    student_weights_ = arena_.take<T>(wide * p.student_depth);
    student_bias_ = arena_.take<T>(wide);
    student_reference_ = arena_.take<double>(wide);
    Sums* const sums = arena_.take<Sums>(p.slots);
    for (int64_t slot = 0; slot < p.slots; ++slot) {
      Sums at;
      at.cross = arena_.take<double>(wide * p.teacher_tiles * tile_rows);
      at.sum = arena_.take<double>(wide);
      at.square = arena_.take<double>(wide);
      at.active = arena_.take<int64_t>(wide);
      at.coactive = arena_.take<int64_t>(p.coactive ? wide * problem_.teacher.nodes : 0);
      if (arena_.base) sums[slot] = at;
    }
    sums_ = sums;
    Scratch* const scratch = arena_.take<Scratch>(parallel_.parts);
    for (int part = 0; part < parallel_.parts; ++part) {
      T* const panel = arena_.take<T>(tiled_rows * columns);
      T* const inputs = arena_.take<T>(p.own_inputs ? tiled_rows * p.student_depth : 0);
      int64_t* const rows_at = arena_.take<int64_t>(p.rows);
      uint64_t* const gates = arena_.take<uint64_t>(p.coactive ? columns * p.words : 0);
      if (arena_.base) scratch[part].panel = panel, scratch[part].inputs = inputs;
      if (arena_.base) scratch[part].rows_at = rows_at, scratch[part].gates = gates;
    }
    scratch_ = scratch;
  }

  int64_t first_row(int64_t chunk) const { return chunk * plan_.rows; }
  int64_t rows_of(int64_t chunk) const { return clamp(problem_.samples - first_row(chunk), 0, plan_.rows); }

  Columns columns_of(const Side& side, int64_t panel, int64_t group_nodes, int64_t group_panels) const {
    Columns c;
    const int64_t group = panel / group_panels, first = panel % group_panels * columns;
    c.width = int(clamp(group_nodes - first, 0, columns));
    for (int i = 0; i < c.width; ++i) {
      const int64_t column = group * group_nodes + first + i;
      c.network[i] = column / side.nodes, c.node[i] = column % side.nodes;
    }
    return c;
  }

  Columns teacher_columns(int64_t panel) const {
    return columns_of(problem_.teacher, panel, problem_.teacher.nodes, plan_.teacher_panels);
  }
  Columns student_columns(int64_t panel) const {
    return columns_of(problem_.student, panel, plan_.group_nodes, plan_.group_panels);
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
      activate_panel(inputs, weights, bias, side.layer.inputs, rows, T(problem_.negative_slope), scratch.panel);
      if (side.activation) keep_activations(side, c, first, rows, scratch.panel);
      return;
    }
    int64_t at[columns] = {};
    for (int i = 0; i < c.width; ++i) {
      at[i] = c.network[i] * side.array.network_stride + c.node[i] * side.array.column_stride;
    }
    if (c.width < columns) std::memset(scratch.panel, 0, rows * columns * sizeof(T));
    sample_offsets(side.array, first, rows, scratch.rows_at);
    gather(static_cast<const Stored*>(side.array.data), scratch.rows_at, rows, at, c.width, scratch.panel, columns);
  }

  void keep_activations(const Side& side, const Columns& c, int64_t first, int64_t rows, const T* panel) const {
    Stored* const out = static_cast<Stored*>(side.activation);
    for (int i = 0; i < c.width; ++i) {
      Stored* const column = out + (c.network[i] * problem_.samples + first) * side.nodes + c.node[i];
      for (int64_t r = 0; r < rows; ++r) column[r * side.nodes] = cast<Stored>(panel[r * columns + i]);
    }
  }

  void teacher_chunk(int64_t chunk, int64_t at, Scratch& scratch) {
    const P& p = plan_;
    const int64_t first = first_row(chunk), rows = rows_of(chunk), tiled = ceil_div(p.rows, tile_rows) * tile_rows;
    T* const inputs = teacher_inputs_ + at * tiled * p.teacher_depth;
    if (p.layer) {
      pack_chunk(problem_.teacher.array, 0, first, rows, p.teacher_depth, scratch.rows_at, inputs);
      if (!p.own_inputs) {
        pack_chunk(problem_.student.array, 0, first, rows, p.student_depth, scratch.rows_at,
                   student_inputs_ + at * tiled * p.student_depth);
      }
    }
    T* const packed = teacher_ + at * p.padded * p.rows;
    PanelStatistics<T>& s = scratch.statistics;
    for (int64_t panel = 0; panel < p.teacher_panels; ++panel) {
      const int64_t node = panel * columns;
      fill_panel(problem_.teacher, teacher_columns(panel), first, rows, inputs,
                 teacher_weights_ + node * p.teacher_depth, teacher_bias_ + node, scratch);
      if (chunk == 0) for (int c = 0; c < columns; ++c) teacher_reference_[node + c] = scratch.panel[c];
      if (p.coactive) gate_bits(scratch.panel, rows, p.words, teacher_gates_ + (at * p.padded + node) * p.words);
      center_panel(scratch.panel, rows, s);
      for (int c = 0; c < columns; ++c) {
        const int64_t j = at * p.padded + node + c;
        chunk_shift_[j] = s.shift[c], chunk_sum_[j] = s.sum[c];
        chunk_square_[j] = s.square[c], chunk_active_[j] = s.active[c];
        T* const column = packed + (node + c) / tile_rows * tile_rows * p.rows + (node + c) % tile_rows;
        if (node + c < p.teacher_tiles * tile_rows) {
          for (int64_t r = 0; r < rows; ++r) column[r * tile_rows] = scratch.panel[r * columns + c];
        }
      }
    }
    for (int64_t j = p.teacher_panels * columns; j < p.teacher_tiles * tile_rows; ++j) {  // nodes that do not exist
      T* const column = packed + j / tile_rows * tile_rows * p.rows + j % tile_rows;
      for (int64_t r = 0; r < rows; ++r) column[r * tile_rows] = T(0);
      chunk_shift_[at * p.padded + j] = chunk_sum_[at * p.padded + j] = 0;
    }
  }

  // In order of chunks: the teacher's statistics, and its tiles' view of every chunk.
  void add_teacher(int64_t chunk, int64_t at, bool first_slab) {
    const int64_t rows = rows_of(chunk);
    for (int64_t j = 0; j < plan_.teacher_tiles * tile_rows; ++j) {
      const int64_t i = at * plan_.padded + j;
      const double offset = chunk_shift_[i] - teacher_reference_[j], sum = chunk_sum_[i];
      TileMoments& tile = tiles_[at * plan_.teacher_tiles + j / tile_rows];
      tile.offset[j % tile_rows] = offset, tile.sum[j % tile_rows] = sum;
      if (!first_slab || j >= problem_.teacher.nodes) continue;
      teacher_sum_[j] += sum + rows * offset;
      teacher_square_[j] += chunk_square_[i] + 2 * offset * sum + rows * offset * offset;
      teacher_active_[j] += chunk_active_[i];
    }
  }

  void student_panel(int64_t slab_first, int64_t panel, int64_t chunk, int64_t at, const T* inputs, Sums& sums,
                     Scratch& scratch) const {
    const P& p = plan_;
    const int64_t rows = rows_of(chunk), column = panel * columns;
    fill_panel(problem_.student, student_columns(slab_first + panel), first_row(chunk), rows, inputs,
               student_weights_ + column * p.student_depth, student_bias_ + column, scratch);
    if (p.coactive) {
      gate_bits(scratch.panel, rows, p.words, scratch.gates);
      count_coactive(teacher_gates_ + at * p.padded * p.words, problem_.teacher.nodes, scratch.gates, columns, p.words,
                     sums.coactive + column * problem_.teacher.nodes);
    }
    PanelStatistics<T>& s = scratch.statistics;
    center_panel(scratch.panel, rows, s);
    double offset[columns], total[columns];
    for (int c = 0; c < columns; ++c) {
      offset[c] = s.shift[c] - student_reference_[column + c];
      total[c] = s.sum[c] + rows * offset[c];
      sums.sum[column + c] += total[c];
      sums.square[column + c] += s.square[c] + 2 * offset[c] * s.sum[c] + rows * offset[c] * offset[c];
      sums.active[column + c] += s.active[c];
    }
    for (int64_t tile = 0; tile < p.teacher_tiles; ++tile) {
      accumulate_tile(teacher_ + at * p.padded * p.rows + tile * tile_rows * p.rows, scratch.panel, rows,
                      tiles_[at * p.teacher_tiles + tile], total, offset,
                      sums.cross + (panel * p.teacher_tiles + tile) * tile_rows * columns);
    }
  }

  // The inputs of one chunk for one panel, packed: shared by all networks, or the panel's own network's.
  const T* inputs_for(int64_t panel, int64_t chunk, int64_t at, int64_t& packed_group, Scratch& scratch) const {
    const P& p = plan_;
    if (!p.own_inputs) return student_inputs_ + at * ceil_div(p.rows, tile_rows) * tile_rows * p.student_depth;
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
        const T* const inputs = inputs_for(slab_first + panel, 0, 0, packed_group, scratch_[part]);
        const int64_t column = panel * columns;
        fill_panel(problem_.student, student_columns(slab_first + panel), 0, 1, inputs,
                   student_weights_ + column * plan_.student_depth, student_bias_ + column, scratch_[part]);
        for (int c = 0; c < columns; ++c) student_reference_[column + c] = scratch_[part].panel[c];
      }
    });
  }

  void student_round(int64_t slab_first, int64_t panels, int64_t first_chunk, int64_t chunks) {
    const int64_t slots = plan_.slots, tasks = slots * panels;
    parallel_([&](int part) {
      const int64_t end = tasks * (part + 1) / parallel_.parts;
      for (int64_t task = tasks * part / parallel_.parts; task < end;) {
        const int64_t slot = task / panels, first = task % panels;
        const int64_t count = panels - first < end - task ? panels - first : end - task;
        for (int64_t at = slot; at < chunks; at += slots) {
          int64_t packed_group = -1;
          for (int64_t panel = first; panel < first + count; ++panel) {
            const T* const inputs = inputs_for(slab_first + panel, first_chunk + at, at, packed_group, scratch_[part]);
            student_panel(slab_first, panel, first_chunk + at, at, inputs, sums_[slot], scratch_[part]);
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
        sum += sums_[slot].sum[column], square += sums_[slot].square[column], active += sums_[slot].active[column];
      }
      p.student_mean[out] = student_reference_[column] + sum / samples;
      p.student_scatter[out] = square - sum * sum / samples;
      p.student_active[out] = active;
      for (int64_t j = 0; j < m; ++j) {
        double cross = 0;
        int64_t coactive = 0;
        for (int64_t slot = 0; slot < plan_.slots; ++slot) {
          cross += sums_[slot].cross[(panel * tiled + j) * columns + i];
          if (plan_.coactive) coactive += sums_[slot].coactive[(panel * m + j) * columns + i];
        }
        const int64_t at = (c.network[i] * m + j) * n + c.node[i];
        p.cross_scatter[at] = cross - teacher_sum_[j] * sum / samples;
        if (plan_.coactive) p.coactive[at] = coactive;
      }
    }
  }

  void write_teacher() const {
    const double samples = double(problem_.samples);
    for (int64_t j = 0; j < problem_.teacher.nodes; ++j) {
      problem_.teacher_mean[j] = teacher_reference_[j] + teacher_sum_[j] / samples;
      problem_.teacher_scatter[j] = teacher_square_[j] - teacher_sum_[j] * teacher_sum_[j] / samples;
      problem_.teacher_active[j] = teacher_active_[j];
    }
  }

  void clear_slab(int64_t panels) {
    const int64_t wide = panels * columns, tiled = plan_.teacher_tiles * tile_rows;
    for (int64_t slot = 0; slot < plan_.slots; ++slot) {
      Sums& s = sums_[slot];
      std::memset(s.cross, 0, wide * tiled * sizeof(double));
      std::memset(s.sum, 0, wide * sizeof(double));
      std::memset(s.square, 0, wide * sizeof(double));
      std::memset(s.active, 0, wide * sizeof(int64_t));
      if (plan_.coactive) std::memset(s.coactive, 0, wide * problem_.teacher.nodes * sizeof(int64_t));
    }
  }

 public:
  OnePass(const MomentsProblem& problem, const Parallel& parallel)
      : problem_(problem), parallel_(parallel), plan_(problem), arena_{nullptr, 0} {
    layout();
    arena_ = {static_cast<char*>(::operator new(arena_.used, std::align_val_t(64))), 0};
    layout();
  }
  ~OnePass() { ::operator delete(arena_.base, std::align_val_t(64)); }
  OnePass(const OnePass&) = delete;
  OnePass& operator=(const OnePass&) = delete;

  void run() {
    const P& p = plan_;
    for (int64_t j = 0; j < p.padded; ++j) {
      teacher_reference_[j] = teacher_sum_[j] = teacher_square_[j] = 0;
      teacher_active_[j] = 0;
    }
    for (int64_t panel = 0; p.layer && panel < p.teacher_panels; ++panel) {
      const int64_t node = panel * columns;
      pack_layer(problem_.teacher, teacher_columns(panel), teacher_weights_ + node * p.teacher_depth, teacher_bias_ + node);
    }
    for (int64_t slab_first = 0; slab_first < p.panels; slab_first += p.slab) {
      const int64_t panels = clamp(p.panels - slab_first, 0, p.slab);
      clear_slab(panels);
      parallel_([&](int part) {
        for (int64_t panel = panels * part / parallel_.parts; p.layer && panel < panels * (part + 1) / parallel_.parts; ++panel) {
          pack_layer(problem_.student, student_columns(slab_first + panel),
                     student_weights_ + panel * columns * p.student_depth, student_bias_ + panel * columns);
        }
      });
      for (int64_t chunk = 0; chunk < p.chunks; chunk += p.round) {
        const int64_t chunks = clamp(p.chunks - chunk, 0, p.round);
        parallel_([&](int part) {
          for (int64_t at = chunks * part / parallel_.parts; at < chunks * (part + 1) / parallel_.parts; ++at) {
            teacher_chunk(chunk + at, at, scratch_[part]);
          }
        });
        for (int64_t at = 0; at < chunks; ++at) add_teacher(chunk + at, at, slab_first == 0);
        if (chunk == 0) find_references(slab_first, panels);
        student_round(slab_first, panels, chunk, chunks);
      }
      parallel_([&](int part) {
        for (int64_t panel = panels * part / parallel_.parts; panel < panels * (part + 1) / parallel_.parts; ++panel) {
          write_panel(slab_first, panel);
        }
      });
    }
    write_teacher();
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
