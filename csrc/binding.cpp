// The only file that knows torch, through its stable ABI: torch.ops.fastkto_native.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__linux__)
// In libtorch_cpu where its BLAS is MKL, else null. Returns the setting of this thread before; 0 is "as the process".
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);
#else
static int (*const MKL_Set_Num_Threads_Local)(int) = nullptr;
#endif

namespace {

// MKL inside a parallel region runs on one thread, yet as the algorithm for all of them: it then splits the sum over the
// depth by the number of rows and threads. Told that it is alone, it gives a row the same products whatever is beside it.
struct Alone {
  int before = MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0;
  Alone() = default;
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;
  ~Alone() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before);
  }
};

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const fastkto::Kernels& kernels() {
  int count;
  return *fastkto::available(&count)[0];
}

int64_t threads() { return torch::stable::get_num_threads(); }

// A fresh view, so that no flag of the caller's tensor (requires_grad, inference mode) reaches a worker's thread.
Tensor view(const float* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(const_cast<float*>(data), {sizes, 2}, {strides, 2}, cpu, ScalarType::Float);
}

// One head call's operands: products[:, j] = hidden @ weight[j].
struct Operands {
  const Tensor &hidden, &weight;
  std::optional<Tensor> bias;
  int64_t rows, vocabulary, columns;

  Operands(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias, int64_t columns)
      : hidden(hidden), weight(weight), bias(bias), rows(hidden.size(0)), vocabulary(weight.size(0)), columns(columns) {
    STD_TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1), "shapes do not fit");
    STD_TORCH_CHECK(hidden.is_cpu() && weight.is_cpu(), "tensors of the CPU only");
    STD_TORCH_CHECK(columns > 0, "a tile needs columns");
  }

  int64_t tiles() const { return (vocabulary + columns - 1) / columns; }

  // out[count, width] = hidden[first : first + count] @ weight[tile].T
  void multiply(int64_t tile, int64_t first, int64_t count, float* out, int64_t out_stride) const {
    const int64_t depth = hidden.size(1);
    const float* rows_of = hidden.const_data_ptr<float>() + first * hidden.stride(0);
    const Tensor a = view(rows_of, count, depth, hidden.stride(0), hidden.stride(1));
    const float* slice = weight.const_data_ptr<float>() + tile * columns * weight.stride(0);
    const Tensor b = view(slice, depth, width(tile), weight.stride(1), weight.stride(0));
    const Tensor c = view(out, count, width(tile), out_stride, 1);
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(c.get(), a.get(), b.get()));
  }

  int64_t width(int64_t tile) const { return std::min(columns, vocabulary - tile * columns); }

  const float* bias_of(int64_t tile) const {
    return bias ? bias->const_data_ptr<float>() + tile * columns : nullptr;
  }
};

// Runs work(unit, worker) for every unit; workers take the next one as they finish, on PyTorch's own pool.
template <class Work>
void for_units(int64_t units, int64_t workers, const Work& work) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    const Alone alone;
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t unit = next++; unit < units; unit = next++) work(unit, worker);
  });
}

// A tile is cut into chunks of rows where there are fewer tiles than threads could use.
struct Chunks {
  static constexpr int64_t kFewest = 64;
  int64_t rows, count;
  Chunks(int64_t total, int64_t tiles) {
    const int64_t wished = std::max<int64_t>(1, 2 * threads() / std::max<int64_t>(tiles, 1));
    rows = std::max(kFewest, (total + wished - 1) / wished);
    count = std::max<int64_t>(1, total / rows);  // the last takes the rest
  }
  int64_t first(int64_t chunk) const { return chunk * rows; }
  int64_t size(int64_t chunk, int64_t total) const { return chunk + 1 == count ? total - first(chunk) : rows; }
};

// Folds weight's columns of the vocabulary, [start, start + V'), into the running statistics (5, n), in tile order.
// `logits` is either a flat scratch, some tiles of rows x columns, or with `keep` the (rows, V') products to keep.
void fold(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor targets, int64_t start, double scale,
          double softcap, int64_t columns, bool entropy, Tensor logits, bool keep, Tensor statistics) {
  const Operands head(hidden, weight, bias, columns);
  const int64_t n = targets.size(0), tiles = head.tiles();
  STD_TORCH_CHECK(n <= head.rows && statistics.size(0) == 5 && statistics.size(1) == n, "statistics do not fit");
  STD_TORCH_CHECK(statistics.stride(1) == 1 && targets.is_contiguous(), "statistics and targets must be dense");
  const int64_t tile_size = head.rows * std::min(columns, head.vocabulary);
  if (keep)
    STD_TORCH_CHECK(logits.size(0) == head.rows && logits.size(1) == head.vocabulary && logits.stride(1) == 1,
                    "the logits to keep need (rows, V')");
  const int64_t workers = keep ? threads() : std::min(threads(), logits.numel() / std::max<int64_t>(tile_size, 1));
  STD_TORCH_CHECK(workers > 0 || n * tiles == 0, "the scratch is smaller than a tile");
  if (n * tiles == 0) return;

  float* buffer = logits.mutable_data_ptr<float>();
  double* running = statistics.mutable_data_ptr<double>();
  const int64_t stride = statistics.stride(0);
  std::vector<fastkto::Partial> partials(tiles * n);
  const Chunks chunks(head.rows, tiles);
  for_units(tiles * chunks.count, workers, [&](int64_t unit, int64_t worker) {
    const int64_t tile = unit / chunks.count, chunk = unit % chunks.count;
    const int64_t first = chunks.first(chunk), count = chunks.size(chunk, head.rows), width = head.width(tile);
    const int64_t out_stride = keep ? logits.stride(0) : width;
    float* out = keep ? buffer + first * out_stride + tile * columns : buffer + worker * tile_size;
    head.multiply(tile, first, count, out, out_stride);
    if (first >= n) return;  // padding
    const fastkto::Logit logit{head.bias_of(tile), static_cast<float>(scale), static_cast<float>(softcap)};
    const int64_t* ids = targets.const_data_ptr<int64_t>() + first;
    kernels().fold({out, std::min(count, n - first), width, out_stride, start + tile * columns, ids, logit}, entropy,
                   &partials[tile * n + first], running + 2 * stride + first);
  });
  const fastkto::Running rows{running, running + stride, running + 3 * stride, running + 4 * stride};
  torch::stable::parallel_for(0, n, 256, [&](int64_t begin, int64_t end) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t row = begin; row < end; ++row) fastkto::merge(partials[tile * n + row], row, entropy, rows);
  });
}

// The first rows of logits (rows, V'), one a target, become the gradient of the products; with `recompute` these are
// formed first.
void gradient(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor targets, int64_t start, double scale,
              double softcap, int64_t columns, Tensor lse, Tensor grad, bool recompute, Tensor logits) {
  const Operands head(hidden, weight, bias, columns);
  const int64_t n = targets.size(0);
  STD_TORCH_CHECK(logits.size(0) == head.rows && logits.size(1) == head.vocabulary && logits.stride(1) == 1,
                  "logits need (rows, V')");
  STD_TORCH_CHECK(n <= head.rows && lse.size(0) == n && grad.size(0) == n, "one target, lse and grad a position");
  STD_TORCH_CHECK(targets.is_contiguous() && lse.is_contiguous() && grad.is_contiguous(), "rows must be dense");
  if (n == 0) return;
  float* buffer = logits.mutable_data_ptr<float>();
  const Chunks chunks(head.rows, head.tiles());
  for_units(head.tiles() * chunks.count, threads(), [&](int64_t unit, int64_t) {
    const int64_t tile = unit / chunks.count, chunk = unit % chunks.count;
    const int64_t first = chunks.first(chunk), count = chunks.size(chunk, head.rows);
    const int64_t width = head.width(tile), stride = logits.stride(0);
    float* out = buffer + first * stride + tile * columns;
    if (recompute) head.multiply(tile, first, count, out, stride);
    if (first >= n) return;  // padding
    const fastkto::Logit logit{head.bias_of(tile), static_cast<float>(scale), static_cast<float>(softcap)};
    const int64_t* ids = targets.const_data_ptr<int64_t>() + first;
    kernels().gradient({out, std::min(count, n - first), width, stride, start + tile * columns, ids, logit},
                       lse.const_data_ptr<float>() + first, grad.const_data_ptr<float>() + first);
  });
}

Tensor row_sums(Tensor logps, Tensor bounds) {
  const int64_t rows = bounds.size(0) - 1;
  STD_TORCH_CHECK(rows >= 0 && logps.is_contiguous() && bounds.is_contiguous(), "dense rows and B + 1 bounds");
  Tensor sums = torch::stable::new_empty(logps, {rows});
  const int64_t* b = bounds.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(rows == 0 || b[rows] - b[0] <= logps.size(0), "bounds past the end");
  fastkto::row_sums(logps.const_data_ptr<float>(), b, rows, sums.mutable_data_ptr<float>());
  return sums;
}

std::string instruction_set() { return kernels().name; }

}  // namespace

STABLE_TORCH_LIBRARY(fastkto_native, m) {
  m.def(
      "fold(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int start, float scale, float softcap, "
      "int columns, bool entropy, Tensor(a!) logits, bool keep, Tensor(b!) statistics) -> ()");
  m.def(
      "gradient(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int start, float scale, float softcap, "
      "int columns, Tensor lse, Tensor grad, bool recompute, Tensor(a!) logits) -> ()");
  m.def("row_sums(Tensor logps, Tensor bounds) -> Tensor");
  m.def("instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastkto_native, CPU, m) {
  m.impl("fold", TORCH_BOX(&fold));
  m.impl("gradient", TORCH_BOX(&gradient));
  m.impl("row_sums", TORCH_BOX(&row_sums));
}

STABLE_TORCH_LIBRARY_IMPL(fastkto_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}
