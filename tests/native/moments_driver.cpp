// Runs the CPU kernels on small integers, where every sum but that of a float loss is exact, in buffers without a spare
// byte and on threads of its own, so that the sanitizers see each access. Prints "ok" and the number of problems.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "one_pass.h"

namespace {

std::mt19937 random_bits(0);
int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

void run_threads(int parts, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
std::unique_ptr<T[]> integers(int64_t count) {
  std::unique_ptr<T[]> out(new T[count]);
  for (int64_t i = 0; i < count; ++i) out[i] = T(draw(-3, 3));
  return out;
}

// Outputs are poisoned: an element that nobody writes is not what it should be.
template <typename T>
struct Output {
  std::unique_ptr<T[]> data;
  explicit Output(int64_t count) : data(new T[count]) {
    for (int64_t i = 0; i < count; ++i) data[i] = T(-77777);
  }
};

void expect(bool fine, const char* what) {
  if (fine) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

struct Shape {
  int64_t samples, inputs, teacher, student, networks, outputs;  // 0 outputs: no loss
  bool layered, own, coactive;
  int parts;
};

template <typename T>
void check(const Shape& s, fastspec::Scalar scalar) {
  const int64_t N = s.samples, d = s.inputs, m = s.teacher, n = s.student, P = s.networks;
  // Layered: x [N, d] with columns apart; given: activations stored [nodes, N], so that rows are adjacent instead.
  const auto x = integers<T>(s.layered ? N * d : m * N), own = integers<T>(s.layered ? P * N * d : P * n * N);
  const auto wt = integers<T>(m * d), ws = integers<T>(P * n * d), bt = integers<T>(m), bs = integers<T>(P * n);
  const auto teacher_at = [&](int64_t r, int64_t j) {
    if (!s.layered) return double(x[j * N + r]);
    double z = bt[j];
    for (int64_t i = 0; i < d; ++i) z += double(x[r * d + i]) * double(wt[j * d + i]);
    return z > 0 ? z : 0.0;
  };
  const auto student_at = [&](int64_t p, int64_t r, int64_t k) {
    if (!s.layered) return double(own[(p * n + k) * N + r]);
    double z = bs[p * n + k];
    for (int64_t i = 0; i < d; ++i) {
      z += double(s.own ? own[(p * N + r) * d + i] : x[r * d + i]) * double(ws[(p * n + k) * d + i]);
    }
    return z > 0 ? z : 0.0;
  };

  Output<double> t_mean(m), s_mean(P * n), t_scatter(m), s_scatter(P * n), cross(P * m * n);
  Output<int64_t> t_active(m), s_active(P * n), coactive(P * m * n);
  Output<T> t_kept(N * m), s_kept(P * N * n);

  fastspec::MomentsProblem p{};
  p.scalar = scalar, p.layered = s.layered, p.samples = N;
  if (s.layered) {
    p.teacher.array = {x.get(), {N, 1, 1, 1}, {d, 0, 0, 0}, 1, 0};
    p.student.array = {s.own ? own.get() : x.get(), {N, 1, 1, 1}, {d, 0, 0, 0}, 1, s.own ? N * d : 0};
    p.teacher.layer = {wt.get(), 0, d, 1, bt.get(), 0, 1, d};
    p.student.layer = {ws.get(), n * d, d, 1, bs.get(), n, 1, d};
    p.teacher.activation = t_kept.data.get(), p.student.activation = s_kept.data.get();
  } else {
    p.teacher.array = {x.get(), {N, 1, 1, 1}, {1, 0, 0, 0}, N, 0};
    p.student.array = {own.get(), {N, 1, 1, 1}, {1, 0, 0, 0}, N, n * N};
  }
  p.teacher.networks = 1, p.teacher.nodes = m, p.student.networks = P, p.student.nodes = n;
  p.teacher_mean = t_mean.data.get(), p.student_mean = s_mean.data.get();
  p.teacher_scatter = t_scatter.data.get(), p.student_scatter = s_scatter.data.get();
  p.cross_scatter = cross.data.get(), p.coactive = s.coactive ? coactive.data.get() : nullptr;
  p.teacher_active = t_active.data.get(), p.student_active = s_active.data.get();
  const int64_t C = s.outputs;
  const auto vt = integers<T>(C * m), vs = integers<T>(P * C * n), ct = integers<T>(C), cs = integers<T>(P * C);
  Output<double> loss(P);
  if (C) p.top = {vt.get(), s.coactive ? ct.get() : nullptr, vs.get(), cs.get(), C, loss.data.get()};
  fastspec::FASTSPEC_ISA::compute(p, {s.parts, run_threads});

  for (int64_t q = 0; q < P; ++q) {
    for (int64_t k = 0; k < n; ++k) {
      const double start = student_at(q, 0, k);
      double sum = 0, square = 0;
      int64_t active = 0;
      for (int64_t r = 0; r < N; ++r) {
        const double v = student_at(q, r, k);
        sum += v - start, square += (v - start) * (v - start), active += v > 0;
        if (s.layered) expect(double(s_kept.data[(q * N + r) * n + k]) == v, "student activation");
      }
      expect(s_mean.data[q * n + k] == start + sum / N, "student mean");
      expect(s_scatter.data[q * n + k] == square - sum * sum / N, "student scatter");
      expect(s_active.data[q * n + k] == active, "student activity");
    }
  }
  for (int64_t q = 0; C && q < P; ++q) {
    double want = 0;
    for (int64_t r = 0; r < N; ++r) {
      std::vector<double> hidden(m + n);
      for (int64_t j = 0; j < m; ++j) hidden[j] = teacher_at(r, j);
      for (int64_t k = 0; k < n; ++k) hidden[m + k] = student_at(q, r, k);
      for (int64_t c = 0; c < C; ++c) {
        double residual = (s.coactive ? double(ct[c]) : 0) - double(cs[q * C + c]);
        for (int64_t j = 0; j < m; ++j) residual += hidden[j] * double(vt[c * m + j]);
        for (int64_t k = 0; k < n; ++k) residual -= hidden[m + k] * double(vs[(q * C + c) * n + k]);
        want += residual * residual / 2;
      }
    }
    expect(std::fabs(loss.data[q] - want) <= (sizeof(T) == sizeof(double) ? 0 : 1e-6) * want, "loss");
  }
  for (int64_t j = 0; j < m; ++j) {
    const double start = teacher_at(0, j);
    double sum = 0;
    for (int64_t r = 0; r < N; ++r) sum += teacher_at(r, j) - start;
    expect(t_mean.data[j] == start + sum / N, "teacher mean");
    for (int64_t q = 0; q < P; ++q) {
      const int64_t k = draw(0, n - 1);
      const double begin = student_at(q, 0, k);
      double product = 0, total = 0;
      int64_t both = 0;
      for (int64_t r = 0; r < N; ++r) {
        const double t = teacher_at(r, j), v = student_at(q, r, k);
        product += (t - start) * (v - begin), total += v - begin, both += t > 0 && v > 0;
      }
      expect(cross.data[(q * m + j) * n + k] == product - sum * total / N, "cross scatter");
      if (s.coactive) expect(coactive.data[(q * m + j) * n + k] == both, "co-activation");
    }
  }
}

}  // namespace

int main() {
  int problems = 0;
  for (const bool layered : {true, false}) {
    for (const bool own : {false, true}) {
      for (const int parts : {1, 3}) {
        for (int repeat = 0; repeat < 6; ++repeat) {
          const Shape shape{draw(1, 900), draw(1, 9),     draw(1, 40),
                            draw(1, 45),  draw(1, 4),     layered && repeat < 4 ? draw(1, 70) : 0,
                            layered,      layered && own, repeat % 2 == 0,
                            parts};
          check<float>(shape, fastspec::Scalar::f32);
          check<double>(shape, fastspec::Scalar::f64);
          problems += 2;
        }
      }
    }
  }
  std::printf("ok %d\n", problems);
}
