// Runs the deep training kernel on data in buffers without a spare byte, by teams of threads of its own, so that the
// sanitizers see each access, and holds it to a plain implementation in double. Prints "ok" and the number of problems.
#include "mlp_sgd_step.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

std::mt19937 random_bits(0);
int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

void run_threads(int parts, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
std::unique_ptr<T[]> values(int64_t count, double scale = 1) {
  std::unique_ptr<T[]> data(new T[count]);
  for (int64_t i = 0; i < count; ++i) data[i] = T(std::uniform_real_distribution<double>(-scale, scale)(random_bits));
  return data;
}

template <typename T>
std::unique_ptr<T[]> copied(const std::unique_ptr<T[]>& from, int64_t count) {
  std::unique_ptr<T[]> data(new T[count]);
  for (int64_t i = 0; i < count; ++i) data[i] = from[i];
  return data;
}

void expect(bool fine, const char* what) {
  if (fine) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

struct Shape {
  std::vector<int64_t> widths;
  int64_t batch, students;
  bool labels, own, normalize, norms;
  double momentum, slope;
};

// A student by the book, in double.
struct Plain {
  const Shape& s;
  const bool* bias;
  std::vector<double> w, v;  // parameters and buffers, flat

  // Activations of every layer, the outputs last, with what comes before the gates.
  std::vector<std::vector<double>> answer(const double* x) const {
    std::vector<std::vector<double>> h{{x, x + s.widths[0]}};
    int64_t at = 0;
    for (size_t l = 0; l + 1 < s.widths.size(); ++l) {
      const int64_t in = s.widths[l], out = s.widths[l + 1];
      std::vector<double> z(out, 0);
      for (int64_t j = 0; j < out; ++j) {
        for (int64_t k = 0; k < in; ++k) z[j] += w[at + j * in + k] * h[l][k];
        if (bias[l]) z[j] += w[at + out * in + j];
        if (l + 2 < s.widths.size() && !(z[j] > 0)) z[j] *= s.slope;
      }
      at += out * (in + bias[l]);
      h.push_back(z);
    }
    return h;
  }

  // Adds one sample's gradient, divided by the batch size; its loss.
  double add(const double* x, const double* y, int64_t label, std::vector<double>& gradient) const {
    const auto h = answer(x);
    const std::vector<double>& f = h.back();
    std::vector<double> g(f.size());
    double loss = 0, sum = 0;
    for (size_t c = 0; c < f.size(); ++c) sum += std::exp(f[c]);
    for (size_t c = 0; c < f.size(); ++c) {
      g[c] = s.labels ? std::exp(f[c]) / sum - (int64_t(c) == label) : f[c] - y[c];
      loss += s.labels ? 0 : g[c] * g[c] / 2;
    }
    if (s.labels) loss = std::log(sum) - f[label];
    int64_t at = int64_t(w.size());
    for (size_t l = s.widths.size() - 1; l-- > 0;) {
      const int64_t in = s.widths[l], out = s.widths[l + 1];
      at -= out * (in + bias[l]);
      std::vector<double> below(in, 0);
      for (int64_t j = 0; j < out; ++j) {
        for (int64_t k = 0; k < in; ++k) {
          gradient[at + j * in + k] += g[j] * h[l][k] / s.batch, below[k] += g[j] * w[at + j * in + k];
        }
        if (bias[l]) gradient[at + out * in + j] += g[j] / s.batch;
      }
      for (int64_t k = 0; k < in; ++k) below[k] *= h[l][k] > 0 ? 1 : s.slope;
      g = below;
    }
    return loss / s.batch;
  }

  void step(const std::vector<double>& gradient, double eta, double decay) {
    for (size_t i = 0; i < w.size(); ++i) {
      v[i] = s.momentum * v[i] + gradient[i] + decay * w[i];
      w[i] -= eta * v[i];
    }
    int64_t at = 0;
    for (size_t l = 0; l + 1 < s.widths.size(); ++l) {
      const int64_t in = s.widths[l], out = s.widths[l + 1];
      for (int64_t j = 0; j < out && s.normalize && l + 2 < s.widths.size(); ++j) {
        double square = 0;
        for (int64_t k = 0; k < in; ++k) square += w[at + j * in + k] * w[at + j * in + k];
        for (int64_t k = 0; k < in && square > 0; ++k) w[at + j * in + k] /= std::sqrt(square);
      }
      at += out * (in + bias[l]);
    }
  }
};

template <typename T>
void check(const Shape& s, fastspec::Scalar scalar) {
  const int64_t layers = int64_t(s.widths.size()) - 1, steps = 3, samples = draw(1, 50), d = s.widths[0];
  const int64_t outputs = s.widths[layers];
  std::unique_ptr<bool[]> bias(new bool[layers]);
  fastspec::DeepProblem p{};
  for (int64_t l = 0; l < layers; ++l) {
    bias[l] = draw(0, 3) > 0, p.count += s.widths[l + 1] * (s.widths[l] + bias[l]);
  }
  const auto x = values<T>(samples * d), y = values<T>(samples * outputs);
  const int64_t tables = s.own ? s.students : 1, all = s.students * p.count;
  std::unique_ptr<int64_t[]> indices(new int64_t[tables * steps * s.batch]), labels(new int64_t[samples]);
  for (int64_t i = 0; i < tables * steps * s.batch; ++i) indices[i] = draw(0, samples - 1);
  for (int64_t i = 0; i < samples; ++i) labels[i] = draw(0, outputs - 1);
  const auto start = values<T>(all, d > 40 ? 0.05 : 0.5);
  std::unique_ptr<double[]> lr(new double[steps]{1.0 / 64, 1.0 / 128, 1.0 / 256});

  p.scalar = scalar, p.samples = samples, p.students = s.students, p.steps = steps, p.batch = s.batch;
  p.layers = layers, p.widths = s.widths.data(), p.bias = bias.get(), p.x = x.get(), p.x_stride = d;
  p.y = s.labels ? nullptr : y.get(), p.y_stride = outputs, p.labels = s.labels ? labels.get() : nullptr;
  p.indices = indices.get(), p.indices_stride = s.own ? steps * s.batch : 0, p.lr = lr.get(), p.first_step = 7;
  p.rule = {s.momentum, 0.125, s.slope, 1e30, s.normalize};

  struct Result {
    std::unique_ptr<T[]> parameters, buffers;
    std::unique_ptr<double[]> loss, norms;
    std::unique_ptr<int64_t[]> diverged;
  };
  const auto train = [&](int parts) {
    Result r{copied(start, all), values<T>(all, 0), values<double>(s.students * steps),
             values<double>(s.students * steps * layers), std::unique_ptr<int64_t[]>(new int64_t[s.students])};
    for (int64_t k = 0; k < s.students; ++k) r.diverged[k] = k == 2 ? 5 : -1;
    p.parameters = r.parameters.get(), p.buffers = s.momentum != 0 ? r.buffers.get() : nullptr;
    p.loss = r.loss.get(), p.gradient_norm = s.norms ? r.norms.get() : nullptr, p.diverged_step = r.diverged.get();
    fastspec::FASTSPEC_ISA::train_deep(p, {parts, run_threads});
    return r;
  };
  const Result got = train(7), alone = train(1);
  for (int64_t i = 0; i < all; ++i) expect(got.parameters[i] == alone.parameters[i], "bits of one thread and seven");

  const double limit = sizeof(T) == 4 ? 3e-5 : 1e-12;
  const auto close = [&](double a, double b, const char* what) {
    expect(std::abs(a - b) <= limit * (1 + std::abs(b)), what);
  };
  for (int64_t k = 0; k < s.students; ++k) {
    const T *mine = got.parameters.get() + k * p.count, *first = start.get() + k * p.count;
    Plain plain{s, bias.get(), {first, first + p.count}, std::vector<double>(p.count, 0)};
    expect(got.diverged[k] == (k == 2 ? 5 : -1), "diverged steps");
    for (int64_t t = 0; t < steps && k != 2; ++t) {
      std::vector<double> gradient(p.count, 0), xs(d), ys(outputs);
      double loss = 0;
      for (int64_t b = 0; b < s.batch; ++b) {
        const int64_t row = indices[(s.own ? k * steps : 0) * s.batch + t * s.batch + b];
        for (int64_t i = 0; i < d; ++i) xs[i] = x[row * d + i];
        for (int64_t c = 0; c < outputs; ++c) ys[c] = y[row * outputs + c];
        loss += plain.add(xs.data(), ys.data(), labels[row], gradient);
      }
      close(got.loss[k * steps + t], loss, "loss");
      int64_t at = 0;
      for (int64_t l = 0; l < layers && s.norms; ++l) {
        double square = 0;
        const int64_t end = at + s.widths[l + 1] * (s.widths[l] + bias[l]);
        for (; at < end; ++at) square += gradient[at] * gradient[at];
        close(got.norms[(k * steps + t) * layers + l], std::sqrt(square), "norm of a gradient");
      }
      plain.step(gradient, lr[t], 0.125);
    }
    for (int64_t i = 0; i < p.count; ++i) close(mine[i], plain.w[i], "parameters");
    if (s.momentum == 0 || k == 2) continue;
    for (int64_t i = 0; i < p.count; ++i) close(got.buffers[k * p.count + i], plain.v[i], "buffers");
  }
}

}  // namespace

int main() {
  int problems = 0;
  for (int repeat = 0; repeat < 30; ++repeat) {
    Shape shape{{draw(1, 40)},
                draw(1, 40),
                repeat % 3 ? 1 : draw(2, 5),
                repeat % 5 == 1,
                repeat % 2 == 0,
                repeat % 7 == 0,
                repeat % 4 == 1,
                repeat % 2 ? 0.5 : 0.0,
                repeat % 3 == 1 ? 0.25 : 0.0};
    for (int64_t l = draw(0, 3); l >= 0; --l) shape.widths.push_back(draw(1, 40));
    if (repeat == 9) shape.widths = {700, 5, 600, 3};  // sums of more than one chunk
#ifdef __SANITIZE_THREAD__                             // half of the code for each sanitizer: it takes long to compile
    check<float>(shape, fastspec::Scalar::f32);
#else
    check<double>(shape, fastspec::Scalar::f64);
#endif
    ++problems;
  }
  std::printf("ok %d\n", problems);
}
