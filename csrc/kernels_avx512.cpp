// The kernels for AVX-512, whatever the flags of the build. The pragma follows the headers: what they define inline
// must run on every processor.
#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>
#include <limits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif

namespace fastkto::avx512 {
namespace {
constexpr int kLanes = 16;
#include "kernels.inc"
#include "product.inc"
}  // namespace

extern const Kernels kernels;
const Kernels kernels = {"avx512", product, fold, gradient, exp_of};
}  // namespace fastkto::avx512

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
