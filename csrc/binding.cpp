// The only file that knows torch, through its stable ABI: torch.ops.fastkto_native.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const fastkto::Kernels& kernels() {
  int count;
  return *fastkto::available(&count)[0];
}

int64_t threads() { return torch::stable::get_num_threads(); }

// A worker's own: packed panels, and behind them a tile of logits. Kept for the next call, because fresh pages cost as
// much as a small product.
float* panels() {
  constexpr size_t floats = fastkto::kPanels + fastkto::kTall * fastkto::kBroad;
  static thread_local std::unique_ptr<float[]> memory(new float[floats + 16]);
  void* start = memory.get();
  size_t room = 4 * (floats + 16);
  return static_cast<float*>(std::align(64, 4 * floats, start, room));
}

float* own_tile() { return panels() + fastkto::kPanels; }

void check_matrix(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_cpu() && x.scalar_type() == ScalarType::Float, name,
                  " needs two dimensions of float32 on the CPU");
}

fastkto::Strided strided(const Tensor& x) { return {x.const_data_ptr<float>(), x.stride(0), x.stride(1)}; }

// One head call's operands: products[:, j] = hidden @ weight[j].
struct Operands {
  const Tensor &hidden, &weight;
  std::optional<Tensor> bias;
  int64_t rows, vocabulary, columns;

  Operands(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias, int64_t columns)
      : hidden(hidden), weight(weight), bias(bias), rows(hidden.size(0)), vocabulary(weight.size(0)), columns(columns) {
    STD_TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1), "shapes do not fit");
    STD_TORCH_CHECK(columns > 0 && columns <= fastkto::kBroad, "a tile has 1 to 512 columns");
  }

  void check() const {
    check_matrix(hidden, "hidden");
    check_matrix(weight, "weight");
  }

  int64_t tiles() const { return (vocabulary + columns - 1) / columns; }

  // out[count, width] = hidden[first : first + count] @ weight[tile].T
  void multiply(int64_t tile, int64_t first, int64_t count, float* out, int64_t out_stride) const {
    const fastkto::Strided a = strided(hidden), b = strided(weight);
    const fastkto::Strided transposed{b.at(tile * columns, 0), b.columns, b.rows};
    const fastkto::Strided part{a.at(first, 0), a.rows, a.columns};
    kernels().product({part, transposed, out, out_stride, count, width(tile), hidden.size(1), false}, panels());
  }

  int64_t width(int64_t tile) const { return std::min(columns, vocabulary - tile * columns); }

  const float* bias_of(int64_t tile) const {
    return bias ? bias->const_data_ptr<float>() + tile * columns : nullptr;
  }
};

// Runs work(unit) for every unit; workers take the next one as they finish, on PyTorch's own pool.
template <class Work>
void for_units(int64_t units, const Work& work) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads(), units), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t unit = next++; unit < units; unit = next++) work(unit);
  });
}

// [0, total) in `count` pieces of one size, a multiple of `grain`; the last may be shorter.
struct Pieces {
  int64_t total, size, count;
  Pieces(int64_t total, int64_t wished, int64_t grain)
      : total(total),
        size(std::max(grain, (total + wished * grain - 1) / (wished * grain) * grain)),
        count((total + size - 1) / size) {}
  int64_t first(int64_t piece) const { return piece * size; }
  int64_t width(int64_t piece) const { return std::min(size, total - first(piece)); }
};

// Rows of at most kTall, so that a tile of logits is still in the cache when the pass over it comes.
Pieces row_pieces(int64_t rows) { return {rows, (rows + fastkto::kTall - 1) / fastkto::kTall, 1}; }

void check_logits(const Tensor& logits, const Operands& head) {
  check_matrix(logits, "logits");
  STD_TORCH_CHECK(logits.size(0) == head.rows && logits.size(1) == head.vocabulary && logits.stride(1) == 1,
                  "logits need (rows, V')");
}

// Folds weight's columns of the vocabulary, [start, start + V'), into the running statistics (5, rows), in tile order.
// The bare products (rows, V') are left in `logits`, if given.
void fold(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor targets, int64_t start, double scale,
          double softcap, int64_t columns, bool entropy, std::optional<Tensor> logits, Tensor statistics) {
  const Operands head(hidden, weight, bias, columns);
  const int64_t n = head.rows, tiles = head.tiles();
  head.check();
  STD_TORCH_CHECK(targets.size(0) == n && statistics.size(0) == 5 && statistics.size(1) == n, "statistics do not fit");
  STD_TORCH_CHECK(statistics.stride(1) == 1 && targets.is_contiguous(), "statistics and targets must be dense");
  if (logits) check_logits(*logits, head);
  if (n * tiles == 0) return;

  float* buffer = logits ? logits->mutable_data_ptr<float>() : nullptr;
  double* running = statistics.mutable_data_ptr<double>();
  const int64_t stride = statistics.stride(0);
  std::vector<fastkto::Partial> partials(tiles * n);
  const Pieces pieces = row_pieces(n);
  for_units(tiles * pieces.count, [&](int64_t unit) {
    const int64_t tile = unit / pieces.count, piece = unit % pieces.count;
    const int64_t first = pieces.first(piece), count = pieces.width(piece), width = head.width(tile);
    const int64_t out_stride = logits ? logits->stride(0) : width;
    float* out = logits ? buffer + first * out_stride + tile * columns : own_tile();
    head.multiply(tile, first, count, out, out_stride);
    const fastkto::Logit logit{head.bias_of(tile), static_cast<float>(scale), static_cast<float>(softcap)};
    const int64_t* ids = targets.const_data_ptr<int64_t>() + first;
    kernels().fold({out, count, width, out_stride, start + tile * columns, ids, logit}, entropy,
                   &partials[tile * n + first], running + 2 * stride + first);
  });
  const fastkto::Running rows{running, running + stride, running + 3 * stride, running + 4 * stride};
  torch::stable::parallel_for(0, n, 256, [&](int64_t begin, int64_t end) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t row = begin; row < end; ++row) fastkto::merge(partials[tile * n + row], row, entropy, rows);
  });
}

// `logits` (rows, V') become the gradient of the products; with `recompute` these are formed first.
void gradient(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor targets, int64_t start, double scale,
              double softcap, int64_t columns, Tensor lse, Tensor grad, bool recompute, Tensor logits) {
  const Operands head(hidden, weight, bias, columns);
  const int64_t n = head.rows;
  check_logits(logits, head);
  if (recompute) head.check();
  STD_TORCH_CHECK(targets.size(0) == n && lse.size(0) == n && grad.size(0) == n, "one target, lse and grad a position");
  STD_TORCH_CHECK(targets.is_contiguous() && lse.is_contiguous() && grad.is_contiguous(), "rows must be dense");
  if (n == 0) return;
  float* buffer = logits.mutable_data_ptr<float>();
  const Pieces pieces = row_pieces(n);
  for_units(head.tiles() * pieces.count, [&](int64_t unit) {
    const int64_t tile = unit / pieces.count, piece = unit % pieces.count;
    const int64_t first = pieces.first(piece), count = pieces.width(piece);
    const int64_t width = head.width(tile), stride = logits.stride(0);
    float* out = buffer + first * stride + tile * columns;
    if (recompute) head.multiply(tile, first, count, out, stride);
    const fastkto::Logit logit{head.bias_of(tile), static_cast<float>(scale), static_cast<float>(softcap)};
    const int64_t* ids = targets.const_data_ptr<int64_t>() + first;
    kernels().gradient({out, count, width, stride, start + tile * columns, ids, logit},
                       lse.const_data_ptr<float>() + first, grad.const_data_ptr<float>() + first);
  });
}

// out = a @ b, or out += a @ b with `add`: operands of any strides, each row's bits its own.
void product(Tensor out, Tensor a, Tensor b, bool add) {
  for (const Tensor* x : {&out, &a, &b}) check_matrix(*x, "a product's tensor");
  STD_TORCH_CHECK(a.size(1) == b.size(0) && out.size(0) == a.size(0) && out.size(1) == b.size(1), "shapes do not fit");
  STD_TORCH_CHECK(out.stride(1) == 1, "a product's columns must be dense");
  if (out.numel() == 0) return;
  float* c = out.mutable_data_ptr<float>();
  const fastkto::Strided left = strided(a), right = strided(b);
  // Rows first: each piece packs b anew. Columns too where that leaves threads without work.
  const int64_t wished = 4 * threads(), most = (a.size(0) + 119) / 120;
  const Pieces rows(a.size(0), std::min(wished, most), 12);
  const Pieces columns(b.size(1), std::max<int64_t>(1, std::min(wished / rows.count, (b.size(1) + 127) / 128)), 32);
  for_units(rows.count * columns.count, [&](int64_t unit) {
    const int64_t i = rows.first(unit / columns.count), j = columns.first(unit % columns.count);
    const fastkto::Strided upper{left.at(i, 0), left.rows, left.columns}, inner{right.at(0, j), right.rows, right.columns};
    kernels().product({upper, inner, c + i * out.stride(0) + j, out.stride(0), rows.width(unit / columns.count),
                       columns.width(unit % columns.count), a.size(1), add},
                      panels());
  });
}

Tensor row_sums(Tensor logps, Tensor bounds) {
  const int64_t rows = bounds.size(0) - 1;
  STD_TORCH_CHECK(rows >= 0 && logps.is_contiguous() && bounds.is_contiguous(), "dense rows and B + 1 bounds");
  Tensor sums = torch::stable::new_empty(logps, {rows});
  const int64_t* b = bounds.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) STD_TORCH_CHECK(b[i] <= b[i + 1], "bounds must rise");
  STD_TORCH_CHECK(rows == 0 || b[rows] - b[0] <= logps.size(0), "bounds past the end");
  fastkto::row_sums(logps.const_data_ptr<float>(), b, rows, sums.mutable_data_ptr<float>());
  return sums;
}

std::string instruction_set() { return kernels().name; }

}  // namespace

STABLE_TORCH_LIBRARY(fastkto_native, m) {
  m.def(
      "fold(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int start, float scale, float softcap, "
      "int columns, bool entropy, Tensor(a!)? logits, Tensor(b!) statistics) -> ()");
  m.def(
      "gradient(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int start, float scale, float softcap, "
      "int columns, Tensor lse, Tensor grad, bool recompute, Tensor(a!) logits) -> ()");
  m.def("product(Tensor(a!) out, Tensor a, Tensor b, bool add) -> ()");
  m.def("row_sums(Tensor logps, Tensor bounds) -> Tensor");
  m.def("instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastkto_native, CPU, m) {
  m.impl("fold", TORCH_BOX(&fold));
  m.impl("gradient", TORCH_BOX(&gradient));
  m.impl("product", TORCH_BOX(&product));
  m.impl("row_sums", TORCH_BOX(&row_sums));
}

STABLE_TORCH_LIBRARY_IMPL(fastkto_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&instruction_set));
}
