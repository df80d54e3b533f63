// Products of two bf16 matrices as training needs them, by AMX's tiles: gradients of weights, and groups of rows that meet
// a matrix each.
//
// A block of the result, some hundred rows and columns, stays in the second cache in fp32 while the sum runs along k in
// chunks. Of each chunk both sides are laid out as tiles there, too: laying them out as a whole would write and read as
// much memory as the product itself. Rows leave as bf16 while the tiles of the next ones are multiplied.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#include <omp.h>
#include <stdlib.h>

#include <vector>

#include "tiled.h"

namespace {

constexpr long HIGH = 384, WIDE = 576, CHUNK = 256;  // of a block: rows, columns, and how far a sum goes at once
constexpr long APART = CHUNK + DEEP;  // what lies a power of two apart shares its places in the caches

// Numbers of two rows side by side, 16 columns: what lies beyond the matrix is 0.
WITH_TILES inline __m512i side_by_side(const bf16* first, const bf16* second, __mmask16 inside) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, first));
  if (!second) return low;
  return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, second)), 16));
}

inline __mmask16 columns_inside(long left) { return left > 0 ? inside(left) : 0; }

// One side of a product: `size` rows or columns of it, each of them a row of memory along k or, if not, a column.
struct Side {
  const bf16* first;
  long stride, size;
  bool along;
};

// 16 rows or columns of a side from j on, 32 numbers along k from p to before `last`; beyond it lies 0. Those that lie along
// k come one a register, the others as pairs of neighbours along k, 16 of them a register.
WITH_TILES inline void read_tile(const Side& side, long j, long p, long last, __m512i (&x)[TILE]) {
  const bf16* from = side.along ? side.first + j * side.stride + p : side.first + p * side.stride + j;
  if (side.along) {
    const __mmask32 held = last - p >= DEEP ? ~0u : (1u << (last - p)) - 1;
    for (long i = 0; i < TILE; i++)
      x[i] = j + i < side.size ? _mm512_maskz_loadu_epi16(held, from + i * side.stride) : _mm512_setzero_si512();
    return;
  }
  const __mmask16 held = columns_inside(side.size - j);
  for (long i = 0; i < TILE; i++, from += 2 * side.stride) {
    const long at = p + 2 * i;
    x[i] = at < last ? side_by_side(from, at + 1 < last ? from + side.stride : nullptr, held) : _mm512_setzero_si512();
  }
}

// `count` rows or columns of a side from j on as tiles, those of 16 one after the other along k: rows of 32 numbers for the
// left of a product, pairs of neighbours along k side by side for its right.
WITH_TILES void lay_out(const Side& side, long j, long count, long p, long last, bool left, bf16* out) {
  for (long at = p; at < last; at += DEEP)
    for (long c = 0; c < count; c += TILE) {
      __m512i x[TILE];
      read_tile(side, j + c, at, last, x);
      if (left != side.along) turn_pairs(x);
      bf16* to = out + c * APART + (at - p) * TILE;
      for (long i = 0; i < TILE; i++) _mm512_store_si512((__m512i*)(to + i * DEEP), x[i]);
    }
}

// Sums of 32 rows and 32 columns over `steps`, on top of what is there unless it is the first chunk.
WITH_TILES inline void add_product(const bf16* left, const bf16* right, long steps, bool first, Leaving& before,
                                   Sums& out) {
  const long along = up(before.rows - before.row, steps);
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, out.tile[0], 64);
    _tile_loadd(1, out.tile[1], 64);
    _tile_loadd(2, out.tile[2], 64);
    _tile_loadd(3, out.tile[3], 64);
  }
  for (long s = 0; s < steps; s++) {
    _tile_loadd(4, left + s * TILE_NUMBERS, 64);
    _tile_loadd(6, right + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + TILE * APART + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + TILE * APART + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    before.some(along);
  }
  _tile_stored(0, out.tile[0], 64);
  _tile_stored(1, out.tile[1], 64);
  _tile_stored(2, out.tile[2], 64);
  _tile_stored(3, out.tile[3], 64);
}

// left times right, k numbers of each, to y, or on top of it.
struct Product {
  Side left, right;
  long k;
  bf16* y;
  long y_stride;
  bool add;
};

// A block of the result of a product: from a row and a column on.
struct Task {
  long product, row, high, column;
};

// What a thread needs for a block.
class Block {
 public:
  Block() : left_(room<bf16>(HIGH * APART)), right_(room<bf16>(WIDE * APART)), sums_(room<Sums>(MOST)) {}
  ~Block() { free(left_), free(right_), free(sums_); }

  // Rows of the block before may still be leaving when this returns, and do with the next one or with `finish`.
  WITH_TILES void multiply(const Product& product, const Task& task) {
    const long m = product.left.size, n = product.right.size, i = task.row, j = task.column;
    const long rows = up(m - i < task.high ? m - i : task.high, BLOCK_ROWS) * BLOCK_ROWS;
    const long columns = up(n - j < WIDE ? n - j : WIDE, COLUMNS) * COLUMNS;
    leaving_.finish();  // the sums that it reads are made anew now
    for (long p = 0; p < product.k; p += CHUNK) {
      const long last = p + CHUNK < product.k ? p + CHUNK : product.k;
      lay_out(product.left, i, rows, p, last, true, left_);
      lay_out(product.right, j, columns, p, last, false, right_);
      Sums* sums = sums_;
      for (long c = 0; c < columns; c += COLUMNS)
        for (long r = 0; r < rows; r += BLOCK_ROWS, sums++) {
          add_product(left_ + r * APART, right_ + c * APART, up(last - p, DEEP), p == 0, leaving_, *sums);
          if (last < product.k) continue;
          bf16* to = product.y + (i + r) * product.y_stride + j + c;
          leaving_.start(*sums, nullptr, m - i - r < BLOCK_ROWS ? m - i - r : BLOCK_ROWS, n - j - c, to,
                         product.y_stride, false, product.add);
        }
    }
  }

  WITH_TILES void finish() { leaving_.finish(); }

 private:
  static constexpr long MOST = HIGH / BLOCK_ROWS * (WIDE / COLUMNS);

  template <class T>
  static T* room(long count) {
    return (T*)aligned_alloc(64, count * sizeof(T));
  }

  bf16 *left_, *right_;
  Sums* sums_;
  Leaving leaving_;
};

WITH_TILES void multiply_all(const std::vector<Product>& products, long fewest) {
  std::vector<Task> tasks;
  for (long p = 0; p < (long)products.size(); p++) {
    const long m = products[p].left.size, parts = up(m, HIGH) < fewest ? fewest : up(m, HIGH);
    const long high = up(up(m, parts), BLOCK_ROWS) * BLOCK_ROWS;
    for (long i = 0; i < m; i += high)
      for (long j = 0; j < products[p].right.size; j += WIDE) tasks.push_back({p, i, high, j});
  }
#pragma omp parallel
  {
    open_tiles();
    Block block;
#pragma omp for schedule(dynamic, 1) nowait
    for (long t = 0; t < (long)tasks.size(); t++) block.multiply(products[tasks[t].product], tasks[t]);
    block.finish();
    close_tiles();
  }
}

}  // namespace

extern "C" {

// y (m, n) = the transpose of a (k, m) times b (k, n), or that is added to it.
void turned_product(const bf16* a, long a_stride, const bf16* b, long b_stride, bf16* y, long y_stride, long m, long n,
                    long k, long add) {
  multiply_all({{{a, a_stride, m, false}, {b, b_stride, n, false}, k, y, y_stride, add != 0}}, omp_get_max_threads());
}

// The transposes of groups of rows of a (rows, m), which end at `ends`, times the same rows of b (rows, n), each to a matrix
// (m, n) of its own, all of one stride, or added to it. A group without rows leaves its matrix alone.
void grouped_turned(const bf16* a, long a_stride, const bf16* b, long b_stride, const int64_t* ends,
                    const int64_t* matrices, long stride, long groups, long m, long n, long add) {
  std::vector<Product> products;
  for (long g = 0, first = 0; g < groups; first = ends[g++])
    if (ends[g] > first)
      products.push_back({{a + first * a_stride, a_stride, m, false}, {b + first * b_stride, b_stride, n, false},
                          ends[g] - first, (bf16*)matrices[g], stride, add != 0});
  multiply_all(products, 1);
}

// Groups of rows of x (m, k), which end at `ends`, each times a matrix of its own: (n, k), or (k, n) if not along, all of one
// stride. The result is y (m, n), or is added to it.
void grouped_product(const bf16* x, long x_stride, const int64_t* ends, const int64_t* matrices, long stride, long along,
                     bf16* y, long y_stride, long groups, long n, long k, long add) {
  std::vector<Product> products;
  for (long g = 0, first = 0; g < groups; first = ends[g++])
    if (ends[g] > first)
      products.push_back({{x + first * x_stride, x_stride, ends[g] - first, true},
                          {(const bf16*)matrices[g], stride, n, along != 0},
                          k, y + first * y_stride, y_stride, add != 0});
  multiply_all(products, 1);
}

}  // extern "C"
