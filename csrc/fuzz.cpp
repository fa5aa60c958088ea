// Fuzzes the kernels of every instruction set of this machine against double, for a build with sanitizers:
//   c++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -ffp-contract=fast -Wno-psabi
//       csrc/fuzz.cpp csrc/kernels_*.cpp -o fuzz && ./fuzz
// Tiles live in heap blocks of exactly their size, so that a read or write past an end is seen.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "kernels.h"

namespace {

using fastkto::Kernels;
using fastkto::Logit;
using fastkto::Partial;
using fastkto::Tile;

constexpr double kEpsilon = 1.0 / (1 << 24);  // half a unit in the last place of 1
const double kInf = std::numeric_limits<double>::infinity();
std::mt19937_64 generator(1);

[[noreturn]] void fail(const Kernels& k, const char* what, double ours, double expected) {
  std::printf("%s: %s: %.9g instead of %.9g\n", k.name, what, ours, expected);
  std::exit(1);
}

int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

float normal(float spread) { return std::normal_distribution<float>(0.0f, spread)(generator); }

// Infinities and NaN must coincide, the rest be near.
void near(const Kernels& k, const char* what, double ours, double expected, double allowed) {
  const bool same = std::isnan(expected) ? std::isnan(ours) : ours == expected || std::abs(ours - expected) <= allowed;
  if (!same) fail(k, what, ours, expected);
}

double logit_of(float x, const Logit& logit, int64_t j, double* slope) {
  double z = (double(x) + (logit.bias ? logit.bias[j] : 0.0)) * logit.scale;
  *slope = logit.scale;
  if (logit.softcap == 0.0f) return z;
  const double t = std::tanh(z / logit.softcap);
  *slope *= 1.0 - t * t;
  return t * logit.softcap;
}

// The stated bound of exp over its whole domain: every `stride`-th float, both signs.
void check_exp(const Kernels& k, uint32_t stride) {
  double worst = 0.0;
  std::vector<float> x, y;
  for (uint64_t bits = 0; bits < (1ull << 32); bits += stride) {
    const uint32_t word = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &word, 4);
    if (std::isnan(value) || std::abs(value) <= 100.0f || std::isinf(value)) x.push_back(value);
    if (x.size() == 4099 || bits + stride >= (1ull << 32)) {
      y.resize(x.size());
      k.exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = std::exp(double(x[i]));
        if (std::isnan(x[i])) {
          near(k, "exp of NaN", y[i], exact, 0.0);
        } else if (x[i] < -87.3365448f) {
          near(k, "exp of a small value", y[i], 0.0, 0.0);
        } else if (x[i] > 88.0f) {
          if (!(y[i] >= exact * (1 - 1e-6))) fail(k, "exp of a large value", y[i], exact);
        } else {
          worst = std::max(worst, std::abs(y[i] - exact) / exact);
        }
      }
      x.clear();
    }
  }
  std::printf("%s: exp is within %.3f * 2^-24\n", k.name, worst / kEpsilon);
  if (worst > 1.5 * kEpsilon) fail(k, "exp", worst, 0.0);
}

void check_tile(const Kernels& k) {
  const int64_t rows = integer(0, 9), columns = integer(1, 150), stride = columns + integer(0, 3), start = integer(0, 50);
  const float spread = integer(0, 3) ? 3.0f : 40.0f;
  const size_t size = rows ? (rows - 1) * stride + columns : 0;
  std::unique_ptr<float[]> data(new float[size]), bias(new float[columns]);
  std::vector<int64_t> targets(rows);
  std::vector<float> lse(rows), grad(rows);
  for (size_t i = 0; i < size; ++i) data[i] = normal(spread);
  for (int64_t j = 0; j < columns; ++j) bias[j] = normal(1.0f);
  for (int64_t i = 0; i < rows; ++i) {
    targets[i] = integer(0, 3) ? integer(0, start + columns + 50) : -100;
    lse[i] = spread * 4 + normal(1.0f);
    grad[i] = integer(0, 5) ? normal(1.0f) : 0.0f;
  }
  const double poisons[] = {NAN, kInf, -kInf};
  const int poison = static_cast<int>(integer(0, 8));
  for (int64_t i = 0; i < rows && poison < 3; ++i)
    for (int64_t n = integer(0, 1) ? 1 : columns; n > 0; --n)
      data[i * stride + (n == 1 ? integer(0, columns - 1) : n - 1)] = static_cast<float>(poisons[poison]);
  const bool entropy = integer(0, 1), affine = integer(0, 1);
  Logit logit{affine ? bias.get() : nullptr, affine ? 0.7f : 1.0f, integer(0, 2) ? 0.0f : 9.0f};
  Tile tile{data.get(), rows, columns, stride, start, targets.data(), logit};

  std::vector<Partial> partials(rows);
  std::vector<double> picked(rows, -7.0);
  k.fold(tile, entropy, partials.data(), picked.data());
  std::vector<double> expected(size, 0.0), allowed(size, 0.0);
  for (int64_t i = 0; i < rows; ++i) {
    double max = -kInf, sum = 0.0, weighted = 0.0, total = 0.0, largest = 1.0, at_target = -7.0;
    std::vector<double> z(columns), slopes(columns);
    for (int64_t j = 0; j < columns; ++j) {
      z[j] = logit_of(data[i * stride + j], logit, j, &slopes[j]);
      if (z[j] > max) max = z[j];
      if (std::isfinite(z[j])) largest = std::max(largest, std::abs(z[j]));
      if (start + j == targets[i]) at_target = z[j];
    }
    const double shift = max == -kInf ? 0.0 : max;
    for (double v : z) {
      const double e = std::exp(v - shift);
      sum += e;
      weighted += e > 0.0 ? e * (v - shift) : e;
      total += v;
    }
    const double unit = 8 * kEpsilon * largest;
    near(k, "maximum", partials[i].max, max, unit);
    near(k, "sum", partials[i].sum, sum, 4 * unit * (1.0 + sum));
    near(k, "target", picked[i], at_target, unit);
    if (entropy) near(k, "weighted", partials[i].weighted, weighted, 16 * unit * columns);
    if (entropy) near(k, "total", partials[i].total, total, unit * columns);
    for (int64_t j = 0; j < columns; ++j) {
      const double p = std::exp(z[j] - lse[i]), g = grad[i] == 0.0f ? 0.0 : grad[i];
      const bool here = start + j == targets[i];
      expected[i * stride + j] = g == 0.0 ? 0.0 : g * slopes[j] * (here ? 1.0 - p : -p);
      allowed[i * stride + j] = std::isfinite(p) ? 8 * unit * std::abs(g) * (1.0 + p) : 0.0;
    }
  }
  k.gradient(tile, lse.data(), grad.data());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      near(k, "gradient", data[i * stride + j], expected[i * stride + j], allowed[i * stride + j]);
}

// Tiles merged one behind the other equal one tile.
void check_merge(const Kernels& k) {
  const int64_t columns = integer(1, 200);
  std::vector<float> data(columns);
  const bool empty_start = integer(0, 1);
  const int64_t cut = integer(0, columns);
  for (int64_t j = 0; j < columns; ++j) data[j] = empty_start && j < cut ? float(-kInf) : normal(5.0f);
  const int64_t target = -100;
  double max[2] = {-kInf, -kInf}, sum[2] = {}, weighted[2] = {}, total[2] = {}, picked = 0.0;
  const fastkto::Running running{max, sum, weighted, total};
  const auto add = [&](int64_t begin, int64_t end, int64_t row) {
    Partial part;
    k.fold({data.data() + begin, 1, end - begin, columns, begin, &target, {nullptr, 1.0f, 0.0f}}, true, &part, &picked);
    fastkto::merge(part, row, true, running);
  };
  add(0, columns, 0);
  for (int64_t begin = 0; begin < columns;) {
    const int64_t end = std::min(columns, begin + integer(1, 40));
    add(begin, end, 1);
    begin = end;
  }
  near(k, "merged maximum", max[1], max[0], 0.0);
  near(k, "merged sum", sum[1], sum[0], 1e-5 * (1.0 + std::abs(sum[0])));
  near(k, "merged weighted", weighted[1], weighted[0], 1e-4 * (1.0 + std::abs(weighted[0])));
  near(k, "merged total", total[1], total[0], 1e-3);
}

// A matrix in a heap block of exactly its size, by rows or by columns.
struct Matrix {
  int64_t rows, columns;
  bool across = integer(0, 1);
  std::unique_ptr<float[]> data{new float[rows * columns]};
  Matrix(int64_t rows, int64_t columns) : rows(rows), columns(columns) {
    for (int64_t i = 0; i < rows * columns; ++i) data[i] = normal(1.0f);
  }
  fastkto::Strided at(int64_t row) const {
    const fastkto::Strided all{data.get(), across ? 1 : columns, across ? rows : 1};
    return {all.at(row, 0), all.rows, all.columns};
  }
};

// Against double, and each row again alone: to the bit.
void check_product(const Kernels& k) {
  const bool deep = integer(0, 9) == 0;
  const int64_t rows = integer(1, deep ? 3 : 40), depth = integer(deep ? 200 : 0, deep ? 900 : 40), columns = integer(1, 90);
  const int64_t stride = columns + integer(0, 2);
  const Matrix a(rows, depth), b(depth, columns);
  const bool add = integer(0, 1);
  std::unique_ptr<float[]> c(new float[(rows - 1) * stride + columns]), panels(new float[fastkto::kPanels]);
  for (int64_t i = 0; i < (rows - 1) * stride + columns; ++i) c[i] = normal(1.0f);
  std::vector<float> before(c.get(), c.get() + (rows - 1) * stride + columns);
  k.product({a.at(0), b.at(0), c.get(), stride, rows, columns, depth, add}, panels.get());
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<float> alone(before.begin() + i * stride, before.begin() + i * stride + columns);
    k.product({a.at(i), b.at(0), alone.data(), columns, 1, columns, depth, add}, panels.get());
    for (int64_t j = 0; j < columns; ++j) {
      double sum = add ? before[i * stride + j] : 0.0, size = std::abs(sum);
      for (int64_t d = 0; d < depth; ++d) {
        const double term = double(*a.at(0).at(i, d)) * *b.at(0).at(d, j);
        sum += term;
        size += std::abs(term);
      }
      near(k, "product", c[i * stride + j], sum, 2 * kEpsilon * size * std::sqrt(depth + 4.0));
      near(k, "row of a product, alone", alone[j], c[i * stride + j], 0.0);
    }
    for (int64_t j = columns; i + 1 < rows && j < stride; ++j)
      near(k, "behind a row", c[i * stride + j], before[i * stride + j], 0.0);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const uint32_t stride = argc > 1 ? static_cast<uint32_t>(std::atoi(argv[1])) : 1009;
  int count;
  const Kernels* const* tables = fastkto::available(&count);
  for (int i = 0; i < count; ++i) {
    check_exp(*tables[i], stride);
    for (int trial = 0; trial < 3000; ++trial) check_tile(*tables[i]);
    for (int trial = 0; trial < 1000; ++trial) check_merge(*tables[i]);
    for (int trial = 0; trial < 1000; ++trial) check_product(*tables[i]);
  }
  const float x[] = {1.0f, 2.0f, 4.0f};
  const int64_t bounds[] = {5, 5, 6, 8};
  float sums[3];
  fastkto::row_sums(x, bounds, 3, sums);
  if (sums[0] != 0.0f || sums[1] != 1.0f || sums[2] != 6.0f) fail(*tables[0], "row sums", sums[2], 6.0);
  std::printf("fine\n");
}
