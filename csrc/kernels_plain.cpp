// The kernels for any processor, and the choice among those built. Four lanes: what SSE2 and NEON have.
#include "kernels.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace fastkto::plain {
namespace {
constexpr int kLanes = 4;
#include "kernels.inc"
#include "product.inc"
}  // namespace

static const Kernels kernels = {"plain", product, fold, gradient, exp_of};
}  // namespace fastkto::plain

namespace fastkto {

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

const Kernels* const* available(int* count) {
  static const Kernels* tables[3];
  static const int found = [] {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      tables[n++] = &avx512::kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables[n++] = &avx2::kernels;
#endif
    tables[n++] = &plain::kernels;
    return n;
  }();
  *count = found;
  return tables;
}

void merge(const Partial& part, int64_t row, bool entropy, const Running& running) {
  const double before = running.max[row], max = part.max > before ? part.max : before;
  // Where nothing but -inf was seen the sum is 0, or NaN, and stays.
  const double old_factor = before == max || !(before > -INFINITY) ? 1.0 : std::exp(before - max);
  const double factor = part.max == max || !(part.max > -INFINITY) ? 1.0 : std::exp(part.max - max);
  running.max[row] = max;
  if (entropy) {  // each sum of exp(z - m) * (z - m) moves to the new m
    const double old_shift = running.sum[row] == 0.0 ? 0.0 : before - max, shift = part.sum == 0.0f ? 0.0 : part.max - max;
    running.weighted[row] = (running.weighted[row] + old_shift * running.sum[row]) * old_factor +
                            (part.weighted + shift * part.sum) * factor;
    running.total[row] += part.total;
  }
  running.sum[row] = running.sum[row] * old_factor + part.sum * factor;
}

void row_sums(const float* x, const int64_t* bounds, int64_t rows, float* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0.0;
    for (int64_t j = bounds[i] - bounds[0]; j < bounds[i + 1] - bounds[0]; ++j) sum += x[j];
    sums[i] = static_cast<float>(sum);
  }
}

}  // namespace fastkto
