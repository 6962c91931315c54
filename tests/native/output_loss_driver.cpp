// Runs the loss kernel on data in buffers without a spare byte and on threads of its own, so that the sanitizers see
// each access, and holds it to a plain implementation in double. Prints "ok" and the number of problems.
#include "output_loss.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

std::mt19937 random_bits(0);

void run_threads(int parts, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
std::unique_ptr<T[]> draw(int64_t count) {
  std::uniform_real_distribution<double> value(-1, 1);
  std::unique_ptr<T[]> out(new T[count]);
  for (int64_t i = 0; i < count; ++i) out[i] = T(value(random_bits));
  return out;
}

template <typename T>
void problem(int64_t students, int64_t samples, int64_t nodes, int64_t outputs, bool with_bias, int threads) {
  const auto answers = draw<T>(samples * outputs), activations = draw<T>(students * samples * nodes);
  const auto weight = draw<T>(students * outputs * nodes), bias = draw<T>(students * outputs);
  const std::unique_ptr<double[]> loss(new double[students]);
  const bool f64 = sizeof(T) == sizeof(double);
  const fastspec::OutputLossProblem p{f64 ? fastspec::Scalar::f64 : fastspec::Scalar::f32,
                                      students,
                                      samples,
                                      nodes,
                                      outputs,
                                      answers.get(),
                                      activations.get(),
                                      weight.get(),
                                      with_bias ? bias.get() : nullptr,
                                      loss.get()};
  fastspec::FASTSPEC_ISA::output_loss(p, {threads, run_threads});
  for (int64_t k = 0; k < students; ++k) {
    double want = 0;
    for (int64_t b = 0; b < samples; ++b) {
      for (int64_t c = 0; c < outputs; ++c) {
        double residual = double(answers[b * outputs + c]) - (with_bias ? double(bias[k * outputs + c]) : 0);
        for (int64_t j = 0; j < nodes; ++j) {
          residual -=
              double(activations[(k * samples + b) * nodes + j]) * double(weight[(k * outputs + c) * nodes + j]);
        }
        want += residual * residual / 2;
      }
    }
    if (std::fabs(loss[k] - want) <= (f64 ? 1e-13 : 1e-5) * want) continue;
    std::printf("wrong: %g instead of %g\n", loss[k], want);
    std::exit(1);
  }
}

}  // namespace

int main() {
  int problems = 0;
  for (const int64_t samples : {1, 13, 1601}) {
    for (const int64_t outputs : {1, 8, 21, 50, 67}) {
      for (const bool bias : {true, false}) {
        problem<float>(3, samples, 5, outputs, bias, 2), problem<double>(2, samples, 9, outputs, bias, 3);
        problems += 2;
      }
    }
  }
  std::printf("ok %d\n", problems);
}
