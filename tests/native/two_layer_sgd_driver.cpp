// Runs a training kernel on data in buffers without a spare byte and on threads of its own, so that the sanitizers see
// each access, and holds it to a plain implementation in double. Prints "ok" and the number of problems.
//
// The kernel is that of the CPU, or, with FASTSPEC_EMULATED, the body of the CUDA kernel in emulated blocks; then an
// argument "file.h:line" names a barrier that is left out.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#ifdef FASTSPEC_EMULATED
#include "fastspec/block/emulated_block.h"
#else
#include "two_layer_sgd.h"
#endif

namespace {

using fastspec::TrainingProblem;
std::mt19937 random_bits(0);
int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

#ifdef FASTSPEC_EMULATED
const char* without = "";
constexpr int64_t most_nodes = 150;  // more than one group of nodes

// Students one after the other, on clusters of two blocks if they can be split, and in each placement.
void train(const TrainingProblem& p, const std::vector<int64_t>& order, int threads) {
  using namespace fastspec::block;
  for (const int64_t& k : order) {
    Launch launch{p, {}, {}, &k, 1, nullptr};
    const int64_t value_bytes = p.scalar == fastspec::Scalar::f64 ? 8 : 4;
    launch.shape = {p.inputs,
                    p.outputs,
                    p.offsets[k + 1] - p.offsets[k],
                    p.batches.size ? p.batches.size : p.samples,
                    p.batches.fresh_std > 0 ? p.teacher_nodes : 0,
                    value_bytes,
                    p.rule.momentum != 0};
    const int64_t shared_bytes[] = {1 << 20, 6000, 1300};
    launch.plan = make_plan(launch.shape, {shared_bytes[k % 3], 2}, threads > 1 ? 2 : 1);
    const std::unique_ptr<Vector<double>[]> memory(
        new Vector<double>[ceil_div(launch.plan.ranks * launch.plan.global_bytes, 16)]);
    std::memset(static_cast<void*>(memory.get()), 0xff, launch.plan.ranks * launch.plan.global_bytes);
    launch.memory = reinterpret_cast<char*>(memory.get());
    emulate(launch, threads, without);
  }
}
#else
constexpr int64_t most_nodes = 20;

void run_threads(int parts, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread& thread : threads) thread.join();
}

void train(const TrainingProblem& p, const std::vector<int64_t>& order, int threads) {
  fastspec::FASTSPEC_ISA::train(p, order.data(), {threads, run_threads});
}
#endif

template <typename T>
struct Values {
  std::unique_ptr<T[]> data;
  int64_t count;
  explicit Values(int64_t n, double scale = 1) : data(new T[n]), count(n) {
    for (int64_t i = 0; i < n; ++i) data[i] = T(std::uniform_real_distribution<double>(-scale, scale)(random_bits));
  }
  Values(const Values& other) : data(new T[other.count]), count(other.count) {
    for (int64_t i = 0; i < count; ++i) data[i] = other.data[i];
  }
};

void expect(bool fine, const char* what) {
  if (fine) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

enum class Source { all, drawn, indices, fresh };

struct Shape {
  Source source;
  int64_t samples, inputs, outputs, batch, steps;
  bool bias, normalize, fixed_first, fixed_top;
  double momentum;
};

template <typename T>
struct Network {
  Values<T> w1, b1, w2, b2;
  Network(int64_t nodes, int64_t networks, const Shape& s, double scale)
      : w1(nodes * s.inputs, scale), b1(nodes, scale), w2(nodes * s.outputs, scale), b2(networks * s.outputs, scale) {}
  fastspec::Packed packed() { return {w1.data.get(), b1.data.get(), w2.data.get(), b2.data.get()}; }
};

// One student by the book, in double: w1 [n, d], b1 [n], w2 [n, C], b2 [C].
struct Plain {
  std::vector<double> w1, b1, w2, b2;

  void answer(const double* x, int64_t d, int64_t n, int64_t C, bool bias, std::vector<double>& h,
              std::vector<double>& f) const {
    h.assign(n, 0), f.assign(C, 0);
    for (int64_t c = 0; c < C && bias; ++c) f[c] = b2[c];
    for (int64_t j = 0; j < n; ++j) {
      double z = bias ? b1[j] : 0;
      for (int64_t k = 0; k < d; ++k) z += w1[j * d + k] * x[k];
      h[j] = z > 0 ? z : 0;
      for (int64_t c = 0; c < C; ++c) f[c] += h[j] * w2[j * C + c];
    }
  }
};

template <typename T>
Plain plain(const Network<T>& w, int64_t from, int64_t n, int64_t k, const Shape& s) {
  const auto part = [](const Values<T>& v, int64_t start, int64_t count) {
    return std::vector<double>(v.data.get() + start, v.data.get() + start + count);
  };
  return {part(w.w1, from * s.inputs, n * s.inputs), part(w.b1, from, n), part(w.w2, from * s.outputs, n * s.outputs),
          part(w.b2, k * s.outputs, s.outputs)};
}

template <typename T>
void check(const Shape& s, fastspec::Scalar scalar) {
  const int64_t widths[] = {draw(1, most_nodes), 1, draw(1, 9), 8}, students = 4, d = s.inputs, C = s.outputs,
                m = draw(1, 12);
  std::vector<int64_t> offsets{0}, seeds, order;
  std::vector<double> lr;
  for (int64_t k = 0; k < students; ++k) {
    offsets.push_back(offsets.back() + widths[k]), seeds.push_back(draw(-9, 9)), order.push_back(students - 1 - k);
    lr.push_back(k == 3 && !s.normalize && draw(0, 2) == 0 ? 1e10 : 1.0 / 256);  // a student that may diverge
  }
  const Values<T> x(s.samples * d), y(s.samples * C);
  const int64_t batch = s.source == Source::all ? s.samples : s.batch;
  std::unique_ptr<int64_t[]> indices(new int64_t[students * s.steps * batch]);
  for (int64_t i = 0; i < students * s.steps * batch; ++i) indices[i] = draw(0, s.samples - 1);
  Network<T> start(offsets.back(), students, s, 0.5), zeros(offsets.back(), students, s, 0), teacher(m, 1, s, 0.5);

  TrainingProblem p{};
  p.scalar = scalar, p.samples = s.samples, p.inputs = d, p.outputs = C, p.students = students, p.steps = s.steps;
  p.x = {x.data.get(), d}, p.y = {y.data.get(), C};
  p.offsets = offsets.data(), p.lr = lr.data(), p.seeds = seeds.data();
  p.teacher = teacher.packed(), p.teacher_nodes = m;
  const double fresh_std = s.source == Source::fresh ? 1.5 : 0;
  p.batches = {s.source == Source::indices ? indices.get() : nullptr,
               s.steps * batch,
               batch,
               s.source == Source::all ? 0 : batch,
               3,
               fresh_std};
  p.rule = {s.momentum, 0.125, 0, 1e30, s.bias, s.normalize, s.fixed_first, s.fixed_top};
  const auto run = [&](Network<T>& weights, Network<T>& buffers, std::vector<int64_t>& diverged, int parts) {
    p.weights = weights.packed(), p.buffers = s.momentum != 0 ? buffers.packed() : fastspec::Packed{};
    p.diverged_step = diverged.data();
    train(p, order, parts);
  };
  Network<T> got(start), got_buffers(zeros), alone(start), alone_buffers(zeros);
  std::vector<int64_t> diverged(students, -1), same(students, -1);
  run(got, got_buffers, diverged, 3), run(alone, alone_buffers, same, 1);
  expect(diverged == same, "diverged steps of one thread and three");
  for (int64_t i = 0; i < got.w1.count; ++i) expect(got.w1.data[i] == alone.w1.data[i], "bits of one thread and three");

  std::vector<double> h, f, xs(d), ys(C), g(64);
  for (int64_t k = 0; k < students; ++k) {
    const int64_t n = widths[k];
    Plain w = plain(start, offsets[k], n, k, s), v = plain(zeros, offsets[k], n, k, s);
    const Plain t = plain(teacher, 0, m, 0, s);
    int64_t stopped = -1;
    for (int64_t step = 0; step < s.steps && stopped < 0; ++step) {
      double loss = 0;
      Plain sum = plain(zeros, offsets[k], n, k, s);
      for (int64_t b = 0; b < batch; ++b) {
        if (s.source == Source::fresh) {
          for (int64_t i = 0; i < d; ++i) {
            const int64_t at = b * d + i;
            const auto block = fastspec::stream_block(seeds[k], fastspec::StreamPurpose::fresh, 3 + step, at / 4);
            xs[i] = double(T(fastspec::standard_normal(block.word[at % 4])) * T(1.5));
          }
          t.answer(xs.data(), d, m, C, true, h, ys);
        } else {
          int64_t row = b;
          if (s.source == Source::indices) row = indices[(k * s.steps + step) * batch + b];
          if (s.source == Source::drawn) {
            const auto block = fastspec::stream_block(seeds[k], fastspec::StreamPurpose::batch, 3 + step, b / 4);
            row = fastspec::batch_index(block.word[b % 4], s.samples);
          }
          for (int64_t i = 0; i < d; ++i) xs[i] = x.data[row * d + i];
          for (int64_t c = 0; c < C; ++c) ys[c] = y.data[row * C + c];
        }
        w.answer(xs.data(), d, n, C, s.bias, h, f);
        for (int64_t c = 0; c < C; ++c) {
          sum.b2[c] += (ys[c] - f[c]) / batch, loss += (ys[c] - f[c]) * (ys[c] - f[c]) / (2 * double(batch));
        }
        for (int64_t j = 0; j < n; ++j) {
          double back = 0;
          for (int64_t c = 0; c < C; ++c) {
            sum.w2[j * C + c] += h[j] * (ys[c] - f[c]) / batch, back += (ys[c] - f[c]) / batch * w.w2[j * C + c];
          }
          back = h[j] > 0 ? back : 0, sum.b1[j] += back;
          for (int64_t i = 0; i < d; ++i) sum.w1[j * d + i] += back * xs[i];
        }
      }
      if (!(loss <= p.rule.loss_limit)) {
        stopped = step + p.batches.first, v = plain(zeros, offsets[k], n, k, s);
        break;
      }
      const auto change = [&](std::vector<double>& weight, std::vector<double>& buffer, std::vector<double>& gradient) {
        for (size_t i = 0; i < weight.size(); ++i) {
          buffer[i] = s.momentum * buffer[i] + (gradient[i] - 0.125 * weight[i]);
          weight[i] += lr[k] * buffer[i];
        }
      };
      if (!s.fixed_first) change(w.w1, v.w1, sum.w1);
      if (!s.fixed_first && s.bias) change(w.b1, v.b1, sum.b1);
      if (!s.fixed_top) change(w.w2, v.w2, sum.w2);
      if (!s.fixed_top && s.bias) change(w.b2, v.b2, sum.b2);
      for (int64_t j = 0; j < n && s.normalize && !s.fixed_first; ++j) {
        double square = 0;
        for (int64_t i = 0; i < d; ++i) square += w.w1[j * d + i] * w.w1[j * d + i];
        for (int64_t i = 0; i < d && square > 0; ++i) w.w1[j * d + i] /= std::sqrt(square);
      }
    }
    expect(diverged[k] == stopped, "diverged step");
    const Plain mine = plain(got, offsets[k], n, k, s), buffers = plain(got_buffers, offsets[k], n, k, s);
    const double limit = sizeof(T) == 4 ? 2e-5 : 1e-13;
    const auto close = [&](const std::vector<double>& a, const std::vector<double>& b, const char* what) {
      double largest = 1;
      for (const double value : b) largest = std::max(largest, std::abs(value));
      for (size_t i = 0; i < a.size(); ++i) expect(std::abs(a[i] - b[i]) <= limit * largest, what);
    };
    close(mine.w1, w.w1, "w1"), close(mine.b1, w.b1, "b1"), close(mine.w2, w.w2, "w2"), close(mine.b2, w.b2, "b2");
    if (s.momentum != 0) close(buffers.w1, v.w1, "momentum of w1"), close(buffers.b2, v.b2, "momentum of b2");
  }
}

}  // namespace

int main([[maybe_unused]] int count, [[maybe_unused]] char** arguments) {
#ifdef FASTSPEC_EMULATED
  if (count > 1) without = arguments[1];
#endif
  int problems = 0;
  for (const Source source : {Source::all, Source::drawn, Source::indices, Source::fresh}) {
    for (int repeat = 0; repeat < 12; ++repeat) {
      const int64_t batch = repeat % 3 ? draw(1, 24) : draw(60, 140);
      const Shape shape{source,          draw(1, 90),     draw(1, 40),           draw(1, 40),
                        batch,           1 + repeat % 3,  repeat % 4 != 0,       repeat % 5 == 0,
                        repeat % 7 == 3, repeat % 7 == 5, repeat % 2 ? 0.5 : 0.0};
      check<float>(shape, fastspec::Scalar::f32);
      check<double>(shape, fastspec::Scalar::f64);
      problems += 2;
    }
  }
  std::printf("ok %d\n", problems);
}
