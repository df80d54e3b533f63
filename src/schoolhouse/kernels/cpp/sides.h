// Products of two bf16 matrices of any layout by AMX's tiles, and how their sides are laid out for them.
//
// A block of the result, some hundred rows and columns, stays in the second cache in fp32 while the sum runs along k in
// chunks. Of each chunk both sides are laid out as tiles there, too: laying them out as a whole would write and read as
// much memory as the product itself. Rows leave as bf16 while the tiles of the next ones are multiplied.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#pragma once

#include <omp.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include "tiled.h"

namespace {

constexpr long HIGH = 384, WIDE = 576;  // of a block: rows, columns
constexpr long CHUNK = 256;             // how far a long sum goes at once
constexpr long SHORT = 640;             // one that is not longer goes to its end, and need not be kept in between
constexpr long APART = SHORT + DEEP;    // what lies a power of two apart shares its places in the caches

// One side of a product: `size` rows or columns of it, each of them a row of memory along k or, if not, a column. In the
// second case `index`, unless it is null, says which row of memory stands for which number along k, and 32 columns lie
// `panel` numbers behind the 32 before.
struct Side {
  const bf16* first;
  long stride, size;
  bool along;
  const int64_t* index = nullptr;
  long panel = DEEP;
  const bf16* at(long k, long column) const { return first + (index ? index[k] : k) * stride + column / DEEP * panel; }
};

inline __mmask32 first_numbers(long left) { return left >= DEEP ? ~0u : left > 0 ? (1u << left) - 1 : 0; }

// Where the numbers of two rows of 32 go so that they lie side by side: those of the first or of the last 16 columns.
WITH_BF16 inline __m512i neighbours_of(bool last) {
  alignas(64) uint16_t at[DEEP];
  for (int i = 0; i < DEEP; i++) at[i] = (last ? TILE : 0) + i / 2 + (i % 2) * DEEP;
  return _mm512_load_si512(at);
}

// 16 rows of memory along k from j on, 32 numbers of each from p to before `last`; beyond lies 0.
WITH_TILES inline void read_along(const Side& side, long j, long p, long last, __m512i (&x)[TILE]) {
  const __mmask32 held = first_numbers(last - p);
  const bf16* from = side.first + j * side.stride + p;
  for (long i = 0; i < TILE; i++)
    x[i] = j + i < side.size ? _mm512_maskz_loadu_epi16(held, from + i * side.stride) : _mm512_setzero_si512();
}

// 32 columns of memory from j on, 32 numbers of each from p to before `last`: pairs of neighbours along k side by side, the
// first 16 columns and the last.
WITH_TILES inline void read_across(const Side& side, long j, long p, long last, __m512i (&x)[TILE], __m512i (&y)[TILE]) {
  const __mmask32 held = first_numbers(side.size - j);
  const __m512i low = neighbours_of(false), high = neighbours_of(true);
  for (long i = 0; i < TILE; i++) {
    const long at = p + 2 * i;
    const __m512i a = at < last ? _mm512_maskz_loadu_epi16(held, side.at(at, j)) : _mm512_setzero_si512();
    const __m512i b = at + 1 < last ? _mm512_maskz_loadu_epi16(held, side.at(at + 1, j)) : _mm512_setzero_si512();
    x[i] = _mm512_permutex2var_epi16(a, low, b);
    y[i] = _mm512_permutex2var_epi16(a, high, b);
  }
}

WITH_TILES inline void store_tile(const __m512i (&x)[TILE], bf16* to) {
  for (long i = 0; i < TILE; i++) _mm512_store_si512((__m512i*)(to + i * DEEP), x[i]);
}

// 32 rows or columns of a side from j on as two tiles, `apart` numbers from one to the other: rows of 32 numbers along k for
// the left of a product, pairs of neighbours along k side by side for its right.
WITH_TILES inline void lay_tiles(const Side& side, long j, long p, long last, bool left, bf16* to, long apart) {
  __m512i x[TILE], y[TILE];
  if (side.along) {
    read_along(side, j, p, last, x);
    if (!left) turn_pairs(x);
    store_tile(x, to);
    read_along(side, j + TILE, p, last, y);
    if (!left) turn_pairs(y);
    store_tile(y, to + apart);
    return;
  }
  read_across(side, j, p, last, x, y);
  if (left) turn_pairs(x), turn_pairs(y);
  store_tile(x, to);
  store_tile(y, to + apart);
}

// `count` rows or columns of a side from j on as tiles, those of 16 one after the other along k.
WITH_TILES inline void lay_out(const Side& side, long j, long count, long p, long last, bool left, bf16* out) {
  for (long at = p; at < last; at += DEEP)
    for (long c = 0; c < count; c += COLUMNS)
      lay_tiles(side, j + c, at, last, left, out + c * APART + (at - p) * TILE, TILE * APART);
}

// Sums of 32 rows and 32 columns over `steps`, on top of what is there unless it is the first chunk. The columns stay in the
// nearest cache, the rows pass it by.
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
    _tile_stream_loadd(4, left + s * TILE_NUMBERS, 64);
    _tile_loadd(6, right + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + TILE * APART + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_stream_loadd(5, left + TILE * APART + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    before.some(along);
  }
  _tile_stored(0, out.tile[0], 64);
  _tile_stored(1, out.tile[1], 64);
  _tile_stored(2, out.tile[2], 64);
  _tile_stored(3, out.tile[3], 64);
}

// left times right, k numbers of each, to y, or on top of it. The rows from `half` on, unless it is 0, go to another y; each
// of both holds `rows`. Either may be null: then nobody wants it.
struct Product {
  Side left, right;
  long k;
  bf16* y;
  long y_stride;
  bool add;
  bf16* other = nullptr;
  long half = 0, rows = left.size;

  // How many of 32 rows from `row` on are wanted, and where they go.
  long wanted(long row) const {
    const long left_of = rows - (half && row >= half ? row - half : row);
    return (half && row >= half ? other : y) ? std::min(left_of, BLOCK_ROWS) : 0;
  }
  bf16* place(long row) const { return half && row >= half ? other + (row - half) * y_stride : y + row * y_stride; }
  // Rows of a block: what is laid out for both halves is laid out once where it stays in the second cache.
  long highest() const { return half && k <= SHORT ? 2 * HIGH : HIGH; }
};

// A block of the result of a product: from a row and a column on.
struct Task {
  long product, row, high, column;
};

// Memory of a thread that stays its own: fresh pages would cost as much as a small product.
class Own {
 public:
  ~Own() { free(at_); }
  template <class T>
  T* room(long count) {
    const long bytes = up(count * sizeof(T), 64) * 64;
    if (bytes > held_) {
      free(at_);
      at_ = aligned_alloc(64, held_ = bytes);
      if (!at_) abort();
    }
    return (T*)at_;
  }

 private:
  void* at_ = nullptr;
  long held_ = 0;
};

// What a thread needs for a block.
class Block {
 public:
  Block() {
    static thread_local Own left, right, sums;
    left_ = left.room<bf16>(2 * HIGH * APART), right_ = right.room<bf16>(WIDE * APART), sums_ = sums.room<Sums>(MOST);
  }

  // Rows of the block before may still be leaving when this returns, and do with the next one or with `finish`.
  WITH_TILES void multiply(const Product& product, const Task& task) {
    const long m = product.left.size, n = product.right.size, i = task.row, j = task.column;
    const long rows = up(m - i < task.high ? m - i : task.high, BLOCK_ROWS) * BLOCK_ROWS;
    const long columns = up(n - j < WIDE ? n - j : WIDE, COLUMNS) * COLUMNS;
    const long chunk = product.k <= SHORT ? SHORT : CHUNK;
    leaving_.finish();  // the sums that it reads are made anew now
    for (long p = 0, done = 0; p < product.k; p += chunk) {
      const long last = p + chunk < product.k ? p + chunk : product.k;
      lay_out(product.left, i, rows, p, last, true, left_);
      lay_out(product.right, j, columns, p, last, false, right_);
      Sums* sums = sums_;
      for (long c = 0; c < columns; c += COLUMNS)
        for (long r = 0; r < rows; r += BLOCK_ROWS, sums++, done++) {
          if (product.k <= SHORT) sums = sums_ + done % 2;
          add_product(left_ + r * APART, right_ + c * APART, up(last - p, DEEP), p == 0, leaving_, *sums);
          if (last < product.k) continue;
          const long wanted = product.wanted(i + r);
          if (wanted <= 0) continue;
          leaving_.start(*sums, wanted, n - j - c, product.place(i + r) + j + c, product.y_stride, false, product.add);
        }
    }
  }

  WITH_TILES void finish() { leaving_.finish(); }

 private:
  static constexpr long MOST = HIGH / BLOCK_ROWS * (WIDE / COLUMNS);

  bf16 *left_, *right_;
  Sums* sums_;
  Leaving leaving_;
};

WITH_TILES inline void multiply_all(const std::vector<Product>& products, long fewest) {
  std::vector<Task> tasks;
  for (long p = 0; p < (long)products.size(); p++) {
    const long m = products[p].left.size, most = up(m, products[p].highest()), parts = most < fewest ? fewest : most;
    const long high = up(up(m, parts), BLOCK_ROWS) * BLOCK_ROWS;
    for (long i = 0; i < m; i += high)
      for (long j = 0; j < products[p].right.size; j += WIDE) tasks.push_back({p, i, high, j});
  }
  std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) {  // long ones first, to end together
    return a.high * products[a.product].k > b.high * products[b.product].k;
  });
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

