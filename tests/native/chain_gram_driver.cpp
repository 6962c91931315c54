// Runs the chain kernel on data in buffers without a spare byte and on threads of its own, so that the sanitizers see
// each access, and holds it to a plain implementation in double. Prints "ok" and the number of problems.
#include "chain_gram.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

using fastspec::ChainGramProblem;
using fastspec::ChainLayer;
using fastspec::GramMatrices;
std::mt19937 random_bits(0);

void run_threads(int parts, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int part = 0; part < parts; ++part) threads.emplace_back(body, context, part);
  for (std::thread& thread : threads) thread.join();
}

using Matrix = std::vector<double>;

template <typename T>
struct Network {
  std::vector<int64_t> nodes;
  std::vector<std::unique_ptr<T[]>> maps, gates;
  std::vector<ChainLayer> layers;

  Network(const std::vector<int64_t>& hidden, int64_t outputs, int64_t samples, double slope) : nodes(hidden) {
    std::uniform_real_distribution<double> weight(-1, 1);
    for (size_t l = 0; l < hidden.size(); ++l) {
      const int64_t above = l + 1 < hidden.size() ? hidden[l + 1] : outputs;
      maps.emplace_back(new T[above * hidden[l]]), gates.emplace_back(new T[samples * hidden[l]]);
      for (int64_t i = 0; i < above * hidden[l]; ++i) maps[l][i] = T(weight(random_bits));
      for (int64_t i = 0; i < samples * hidden[l]; ++i) gates[l][i] = T(weight(random_bits) > 0 ? 1 : slope);
      layers.push_back({maps[l].get(), gates[l].get(), hidden[l]});
    }
  }

  // V D [outputs, nodes] of a sample in every layer, in double.
  std::vector<Matrix> factors(int64_t outputs, int64_t sample) const {
    std::vector<Matrix> found(nodes.size());
    for (size_t l = nodes.size(); l-- > 0;) {
      found[l].assign(outputs * nodes[l], 0);
      for (int64_t c = 0; c < outputs; ++c) {
        for (int64_t k = 0; k < nodes[l]; ++k) {
          double sum = 0;
          if (l + 1 == nodes.size()) {
            sum = maps[l][c * nodes[l] + k];
          } else {
            for (int64_t a = 0; a < nodes[l + 1]; ++a) {
              sum += found[l + 1][c * nodes[l + 1] + a] * double(maps[l][a * nodes[l] + k]);
            }
          }
          found[l][c * nodes[l] + k] = sum * double(gates[l][sample * nodes[l] + k]);
        }
      }
    }
    return found;
  }
};

void expect_near(const double* got, const Matrix& want, double bound) {
  double size = 1e-300;
  for (const double w : want) size = std::max(size, std::fabs(w));
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::fabs(got[i] - want[i]) <= bound * size) continue;
    std::printf("wrong: %g instead of %g\n", got[i], want[i]);
    std::exit(1);
  }
}

void add(const Matrix& a, int64_t m, const Matrix& b, int64_t n, int64_t outputs, Matrix& out) {
  for (int64_t c = 0; c < outputs; ++c) {
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t k = 0; k < n; ++k) out[j * n + k] += a[c * m + j] * b[c * n + k];
    }
  }
}

template <typename T>
void problem(const std::vector<int64_t>& teacher_nodes, const std::vector<int64_t>& student_nodes, int64_t samples,
             int64_t outputs, double slope, bool within, int threads) {
  const Network<T> teacher(teacher_nodes, outputs, samples, slope), student(student_nodes, outputs, samples, slope);
  const size_t depth = teacher_nodes.size();
  std::vector<std::unique_ptr<double[]>> memory;
  std::vector<GramMatrices> out;
  std::vector<Matrix> want[3];
  for (size_t l = 0; l < depth; ++l) {
    const int64_t m = teacher_nodes[l], n = student_nodes[l];
    const int64_t sizes[3] = {m * n, m * m, n * n};
    for (int i = 0; i < 3; ++i) memory.emplace_back(new double[sizes[i]]), want[i].emplace_back(sizes[i], 0.0);
    out.push_back({memory[3 * l].get(), memory[3 * l + 1].get(), memory[3 * l + 2].get()});
  }
  for (int64_t x = 0; x < samples; ++x) {
    const auto t = teacher.factors(outputs, x), s = student.factors(outputs, x);
    for (size_t l = 0; l < depth; ++l) {
      const int64_t m = teacher_nodes[l], n = student_nodes[l];
      add(t[l], m, s[l], n, outputs, want[0][l]);
      add(t[l], m, t[l], m, outputs, want[1][l]), add(s[l], n, s[l], n, outputs, want[2][l]);
    }
  }
  const bool f64 = sizeof(T) == sizeof(double);
  const ChainGramProblem p{f64 ? fastspec::Scalar::f64 : fastspec::Scalar::f32,
                           samples,
                           outputs,
                           int64_t(depth),
                           teacher.layers.data(),
                           student.layers.data(),
                           out.data(),
                           within,
                           within};
  fastspec::FASTSPEC_ISA::ChainGram<T>(p).run({threads, run_threads});
  for (size_t l = 0; l < depth; ++l) {
    for (int i = 0; i < (within ? 3 : 1); ++i) expect_near(memory[3 * l + i].get(), want[i][l], f64 ? 1e-12 : 1e-5);
  }
}

}  // namespace

int main() {
  int problems = 0;
  for (const int64_t samples : {1, 8, 77, 150}) {
    for (const double slope : {0.0, 0.25}) {
      for (const bool within : {true, false}) {
        const int threads = samples > 8 ? 3 : 1;
        problem<float>({5}, {19}, samples, 3, slope, within, threads);
        problem<float>({3, 6}, {33, 17}, samples, 19, slope, within, threads);
        problem<float>({4, 9, 2}, {16, 7, 21}, samples, 5, slope, within, threads);
        problems += 3;
      }
    }
  }
  std::printf("ok %d\n", problems);
}
