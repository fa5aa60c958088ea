// The kernels for AVX2, whatever the flags of the build. The pragma follows the headers: what they define inline
// must run on every processor.
#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>
#include <limits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace fastkto::avx2 {
namespace {
constexpr int kLanes = 8;
#include "kernels.inc"
#include "product.inc"
}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"avx2", product, fold, gradient, exp_of};
}  // namespace fastkto::avx2

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
