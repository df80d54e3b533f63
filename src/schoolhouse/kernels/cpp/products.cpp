// The product of two bf16 matrices that training needs for the gradient of a weight, by AMX's tiles.
//
// A block of the result, some hundred rows and columns, stays in the second cache in fp32 while the sum runs along k in
// chunks. Of each chunk both sides are laid out as tiles there, too: laying them out as a whole would write and read as
// much memory as the product itself. Rows leave as bf16 while the tiles of the next ones are multiplied.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#include <omp.h>
#include <stdlib.h>

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

inline __mmask16 columns_inside(long left) { return left >= PANEL ? 0xffff : left > 0 ? (1u << left) - 1 : 0; }

// Rows become columns, of 16 times 16 pairs.
WITH_TILES inline void turn_pairs(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
      y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
    x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
  }
}

// 32 rows of x (k, n) from row p on, 16 columns from column j on: 16 times two rows side by side. Beyond x lies 0.
WITH_TILES inline void read_pairs(const bf16* x, long stride, long k, long n, long p, long j, __m512i (&pairs)[TILE]) {
  const __mmask16 inside = columns_inside(n - j);
  for (long i = 0; i < TILE; i++) {
    const long at = p + 2 * i;
    const bf16* first = x + at * stride + j;
    pairs[i] = at < k ? side_by_side(first, at + 1 < k ? first + stride : nullptr, inside) : _mm512_setzero_si512();
  }
}

// Rows p to `last` of x (k, n) and `count` of its columns as tiles, those of 16 columns one after the other along k: pairs
// of neighbours along k side by side, as a right side wants them, or turned, columns as rows of 32 numbers along k.
WITH_TILES void lay_out(const bf16* x, long stride, long n, long p, long last, long j, long count, bool turned, bf16* out) {
  for (long at = p; at < last; at += DEEP)
    for (long c = 0; c < count; c += TILE) {
      __m512i pairs[TILE];
      read_pairs(x, stride, last, n, at, j + c, pairs);
      if (turned) turn_pairs(pairs);
      bf16* to = out + c * APART + (at - p) * TILE;
      for (long i = 0; i < TILE; i++) _mm512_store_si512((__m512i*)(to + i * DEEP), pairs[i]);
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

}  // namespace

extern "C" {

// y (m, n) = the transpose of a (k, m) times b (k, n).
WITH_TILES void turned_product(const bf16* a, long a_stride, const bf16* b, long b_stride, bf16* y, long y_stride, long m,
                               long n, long k) {
  const long even = up(up(m, omp_get_max_threads()), BLOCK_ROWS) * BLOCK_ROWS, high = even < HIGH ? even : HIGH;
#pragma omp parallel
  {
    open_tiles();
    bf16 *left = (bf16*)aligned_alloc(64, high * APART * sizeof(bf16)),
         *right = (bf16*)aligned_alloc(64, WIDE * APART * sizeof(bf16));
    Sums* block = (Sums*)aligned_alloc(64, high / BLOCK_ROWS * (WIDE / COLUMNS) * sizeof(Sums));
    Leaving leaving;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
    for (long i = 0; i < m; i += high)
      for (long j = 0; j < n; j += WIDE) {
        const long rows = i + high < m ? high : up(m - i, BLOCK_ROWS) * BLOCK_ROWS;
        const long columns = j + WIDE < n ? WIDE : up(n - j, COLUMNS) * COLUMNS;
        leaving.finish();  // the sums that it reads are made anew now
        for (long p = 0; p < k; p += CHUNK) {
          const long last = p + CHUNK < k ? p + CHUNK : k;
          lay_out(a, a_stride, m, p, last, i, rows, true, left);
          lay_out(b, b_stride, n, p, last, j, columns, false, right);
          Sums* sums = block;
          for (long c = 0; c < columns; c += COLUMNS)
            for (long r = 0; r < rows; r += BLOCK_ROWS, sums++) {
              add_product(left + r * APART, right + c * APART, up(last - p, DEEP), p == 0, leaving, *sums);
              if (last < k) continue;
              const long real = m - i - r < BLOCK_ROWS ? m - i - r : BLOCK_ROWS;
              leaving.start(*sums, nullptr, real, n - j - c, y + (i + r) * y_stride + j + c, y_stride, false);
            }
        }
      }
    leaving.finish();
    free(block), free(left), free(right);
    close_tiles();
  }
}

}  // extern "C"
