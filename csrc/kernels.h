// Matrix products and the passes over a tile of logits, on plain pointers: no torch here.
// Legend: a tile is `rows` positions by `columns` of the vocabulary, float, rows `stride` apart.
#pragma once

#include <cstdint>

namespace fastkto {

// z = softcap * tanh(scale * (x + bias) / softcap), without the tanh where softcap is 0, x being the bare product.
struct Logit {
  const float* bias;  // of the tile's columns, or null
  float scale;
  float softcap;
  bool plain() const { return bias == nullptr && scale == 1.0f && softcap == 0.0f; }
};

struct Tile {
  float* data;
  int64_t rows, columns, stride;
  int64_t start;  // the tile's first column in the vocabulary
  const int64_t* targets;  // one a row, in the vocabulary; negative: none
  Logit logit;
};

// What one row of one tile adds to the running statistics.
struct Partial {
  float max;  // of the values that are not NaN; -inf where there is none
  float sum;  // of exp(z - max), NaN if a value is NaN or +inf
  float weighted;  // of exp(z - max) * (z - max), with entropy only
  float total;  // of z, with entropy only
};

// Steps in floats from a row to the next and from a column to the next.
struct Strided {
  const float* data;
  int64_t rows, columns;
  const float* at(int64_t row, int64_t column) const { return data + row * rows + column * columns; }
};

// c[rows][columns] = a[rows][depth] @ b[depth][columns], or += with `add`; rows of c `stride` apart, its columns dense.
struct Product {
  Strided a, b;
  float* c;
  int64_t stride, rows, columns, depth;
  bool add;
};

// What a product packs at once, for every instruction set: rows of a by depth, depth by columns of b. A depth that is
// cut at multiples of kDepth adds up to the same bits as in one piece.
constexpr int64_t kDepth = 256, kTall = 240, kBroad = 512;
constexpr int64_t kPanels = (kTall + kBroad) * kDepth;

struct Kernels {
  const char* name;
  // `scratch` of kPanels floats. A row of c has the same bits whatever the other rows and the sizes are.
  void (*product)(const Product& p, float* scratch);
  // Reads the tile; writes partials[rows] and, where the target lies in the tile, target_logits[row].
  void (*fold)(const Tile& tile, bool entropy, Partial* partials, double* target_logits);
  // Tile of products to the gradient with respect to them: grad * (onehot(target) - exp(z - lse)) * dz/dx.
  // A row whose grad is 0 becomes 0, whatever its logits.
  void (*gradient)(const Tile& tile, const float* lse, const float* grad);
  // exp of n floats, for the tests of its error.
  void (*exp)(const float* x, float* y, int64_t n);
};

// Every table that this processor can run, the fastest first; `count` of them.
const Kernels* const* available(int* count);

// Running statistics of the rows, in double; `sum` and `weighted` are relative to the maximum.
struct Running {
  double *max, *sum, *weighted, *total;
};
void merge(const Partial& part, int64_t row, bool entropy, const Running& running);

// sums[i] = sum of x[bounds[i] .. bounds[i + 1]), counted from bounds[0]; in double, in order.
void row_sums(const float* x, const int64_t* bounds, int64_t rows, float* sums);

}  // namespace fastkto
