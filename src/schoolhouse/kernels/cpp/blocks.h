// What attention over blocks of queries and keys is made of: blocks laid out for products of bf16 pairs, and the products.
//
// Every size here is a multiple of 32; what lies beyond the tensors is laid out as 0. A left side holds rows of numbers
// along the sum; a right side holds, for each two steps along the sum, its columns' two numbers side by side.

#pragma once

#include "tiles.h"

namespace {

constexpr long BOTH = 2;  // numbers side by side in a right side

inline long whole(long x) { return (x + DEEP - 1) / DEEP * DEEP; }

// Rows of bf16 numbers in a caller's tensor: `count` of them, `width` numbers each.
struct RowsOf {
  const bf16* at;
  long row, count, width;
};

inline __mmask32 first_of_32(long count) { return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1; }
inline __mmask16 first_of_16(long count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// 32 numbers of a row from d on, 0 beyond its end or if there is no such row.
WITH_BF16 inline __m512i read_row(const RowsOf& x, long row, long d) {
  return row < x.count ? _mm512_maskz_loadu_epi16(first_of_32(x.width - d), x.at + row * x.row + d)
                       : _mm512_setzero_si512();
}

// 16 rows from `row` on, 32 numbers of each from d on, as 16 pairs by 16 rows.
WITH_BF16 inline void read_turned(const RowsOf& x, long row, long d, __m512i (&pairs)[16]) {
  for (long i = 0; i < TILE; i++) pairs[i] = read_row(x, row + i, d);
  turn_pairs(pairs);
}

WITH_BF16 inline __m512i places(int first) {
  alignas(64) uint16_t at[32];
  for (int i = 0; i < 32; i++) at[i] = first < 2 ? first + 2 * i : (first - 2) * 8 + i / 2 + (i % 2) * 32;
  return _mm512_load_si512(at);
}

// Left side, the sum along a row's numbers: (rows, width).
WITH_BF16 inline void lay_rows(const RowsOf& x, bf16* to) {
  const long width = whole(x.width), rows = whole(x.count);
  for (long i = 0; i < rows; i++)
    for (long d = 0; d < width; d += DEEP) _mm512_store_si512(to + i * width + d, read_row(x, i, d));
}

// Left side, the sum along the rows: for each 32 rows (width, 32).
WITH_BF16 inline void lay_turned(const RowsOf& x, bf16* to) {
  const long width = whole(x.width), rows = whole(x.count);
  const __m512i even = places(0), odd = places(1);
  for (long i = 0; i < rows; i += DEEP)
    for (long d = 0; d < width; d += DEEP) {
      __m512i low[16], high[16];
      read_turned(x, i, d, low);
      read_turned(x, i + TILE, d, high);
      for (long j = 0; j < 16; j++) {
        bf16* out = to + i * width + (d + 2 * j) * DEEP;
        _mm512_store_si512(out, _mm512_permutex2var_epi16(low[j], even, high[j]));
        _mm512_store_si512(out + DEEP, _mm512_permutex2var_epi16(low[j], odd, high[j]));
      }
    }
}

// Right side, the sum along a row's numbers: (width / 2, columns, 2).
WITH_BF16 inline void lay_columns(const RowsOf& x, long columns, bf16* to) {
  const long width = whole(x.width), rows = whole(x.count);
  for (long i = 0; i < rows; i += TILE)
    for (long d = 0; d < width; d += DEEP) {
      __m512i pairs[16];
      read_turned(x, i, d, pairs);
      for (long j = 0; j < 16; j++) _mm512_store_si512(to + ((d / 2 + j) * columns + i) * BOTH, pairs[j]);
    }
}

// Right side, the sum along the rows: (rows / 2, width, 2).
WITH_BF16 inline void lay_pairs(const RowsOf& x, bf16* to) {
  const long width = whole(x.width), rows = whole(x.count);
  const __m512i low = places(2), high = places(4);
  for (long i = 0; i < rows; i += 2)
    for (long d = 0; d < width; d += DEEP) {
      const __m512i a = read_row(x, i, d), b = read_row(x, i + 1, d);
      bf16* out = to + i * width + d * BOTH;
      _mm512_store_si512(out, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(out + DEEP, _mm512_permutex2var_epi16(a, high, b));
    }
}

// Sums (width, columns) of fp32, times `scale` and each column's factor, to rows of bf16: `count` of `width` numbers each.
WITH_BF16 inline void write_turned(const float* sums, long columns, const float* factors, float scale, bf16* to, long row,
                                   long count, long width) {
  for (long i = 0; i < count; i += LANES) {
    const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(factors + i), _mm512_set1_ps(scale));
    for (long d = 0; d < width; d += LANES) {
      __m512i x[16];
      for (long j = 0; j < LANES; j++)
        x[j] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(sums + (d + j) * columns + i), factor));
      turn_pairs(x);
      const __mmask16 inside = first_of_16(width - d);
      for (long j = 0; j < LANES && i + j < count; j++)
        _mm256_mask_storeu_epi16(to + (i + j) * row + d, inside,
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(x[j])));
    }
  }
}

// Sums (rows, whole(width)) of fp32, times `scale`, to rows of bf16.
WITH_BF16 inline void write_rows(const float* sums, float scale, bf16* to, long row, long count, long width) {
  for (long i = 0; i < count; i++)
    for (long d = 0; d < width; d += LANES)
      _mm256_mask_storeu_epi16(
          to + i * row + d, first_of_16(width - d),
          (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_load_ps(sums + i * whole(width) + d), _mm512_set1_ps(scale))));
}

// Left side: `row` from row to row, `step` from 32 numbers to the next. Right side: `row` from pair to pair.
struct Left {
  const bf16* at;
  long row, step;
};
struct Right {
  const bf16* at;
  long row;
};

// Sums over 32 * steps numbers, of rows and columns in multiples of 32, on top of what is there if `add`.
WITH_TILES inline void multiply_tiles(Left a, Right b, long rows, long columns, long steps, float* c, long c_row, bool add) {
  for (long i = 0; i < rows; i += DEEP)
    for (long j = 0; j < columns; j += DEEP) {
      float *upper = c + i * c_row + j, *lower = upper + TILE * c_row;
      if (add) {
        _tile_loadd(0, upper, c_row * 4);
        _tile_loadd(1, upper + TILE, c_row * 4);
        _tile_loadd(2, lower, c_row * 4);
        _tile_loadd(3, lower + TILE, c_row * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const bf16 *left = a.at + i * a.row, *right = b.at + j * BOTH;
      for (long t = 0; t < steps; t++, left += a.step, right += TILE * b.row) {
        _tile_loadd(4, left, a.row * 2);
        _tile_loadd(6, right, b.row * 2);
        _tile_loadd(7, right + TILE * BOTH, b.row * 2);
        _tile_loadd(5, left + TILE * a.row, a.row * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, upper, c_row * 4);
      _tile_stored(1, upper + TILE, c_row * 4);
      _tile_stored(2, lower, c_row * 4);
      _tile_stored(3, lower + TILE, c_row * 4);
    }
}

// The same without tiles.
WITH_BF16 inline void multiply_lanes(Left a, Right b, long rows, long columns, long steps, float* c, long c_row, bool add) {
  constexpr long HIGH = HALVED ? 2 : 8;  // rows whose sums the registers hold
  for (long j = 0; j < columns; j += 2 * LANES)
    for (long i = 0; i < rows; i += HIGH) {
      __m512 sum[HIGH][2];
#pragma GCC unroll 8
      for (long r = 0; r < HIGH; r++)
        for (long s = 0; s < 2; s++)
          sum[r][s] = add ? _mm512_load_ps(c + (i + r) * c_row + j + s * LANES) : _mm512_setzero_ps();
      for (long t = 0; t < steps; t++)
        for (long p = 0; p < TILE; p++) {
          const bf16* right = b.at + (t * TILE + p) * b.row + j * BOTH;
          const __m512bh first = (__m512bh)_mm512_load_si512(right), second = (__m512bh)_mm512_load_si512(right + DEEP);
#pragma GCC unroll 8
          for (long r = 0; r < HIGH; r++) {
            const int pair = *(const int*)(a.at + (i + r) * a.row + t * a.step + p * BOTH);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)_mm512_set1_epi32(pair), first);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)_mm512_set1_epi32(pair), second);
          }
        }
#pragma GCC unroll 8
      for (long r = 0; r < HIGH; r++)
        for (long s = 0; s < 2; s++) _mm512_store_ps(c + (i + r) * c_row + j + s * LANES, sum[r][s]);
    }
}

inline void multiply(Left a, Right b, long rows, long columns, long steps, float* c, long c_row, bool add) {
  if (tiles_allowed) return multiply_tiles(a, b, rows, columns, steps, c, c_row, add);
  multiply_lanes(a, b, rows, columns, steps, c, c_row, add);
}

// Two rows of 16 numbers: as pairs for a right side, in bf16.
WITH_BF16 inline __m512i pairs_of(__m512 first, __m512 second) {
  return side_by_side((__m512i)_mm512_cvtne2ps_pbh(second, first));
}

}  // namespace
