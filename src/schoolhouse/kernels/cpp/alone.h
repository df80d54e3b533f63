// Products of few rows with some columns of a packed bf16 matrix, by one thread: what experts and heads are made of. The
// threads of a region share such products among them; none of them waits for the others. A row gets the bits that
// `multiply_rows` would give it, whatever other rows there are.

#pragma once

#include <stdlib.h>
#include <string.h>

#include "rows.h"
#include "tiled.h"

namespace {

// Sums over pairs of R rows and 32 columns, whose two panels lie behind one another.
template <int R>
WITH_BF16 inline void few_rows(const bf16* x, long stride, const bf16* panels, long k, bf16* y, long y_stride,
                               __mmask32 inside) {
  const bf16* second = panels + k * PANEL;
  __m512 sum[R][2];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (long j = 0; j < k; j += 2) {
    const __m512bh left = pairs_of(panels + j * PANEL), right = pairs_of(second + j * PANEL);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      int pair;
      memcpy(&pair, x + i * stride + j, sizeof(pair));
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], both, left);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], both, right);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
    _mm512_mask_storeu_epi16(y + i * y_stride, inside, (__m512i)_mm512_cvtne2ps_pbh(sum[i][1], sum[i][0]));
}

template <int R>
void rows_by(const bf16* x, long stride, long m, const bf16* panels, long k, bf16* y, long y_stride, __mmask32 inside) {
  for (; m >= R; m -= R, x += R * stride, y += R * y_stride) few_rows<R>(x, stride, panels, k, y, y_stride, inside);
  if constexpr (R > 1) rows_by<R / 2>(x, stride, m, panels, k, y, y_stride, inside);
}

inline __mmask32 columns_left(long n) { return n >= COLUMNS ? ~0u : (1u << n) - 1; }

// What gates become with what stands beside them, on its way to bf16: `Leaving` for two blocks of sums. The first half of
// its turns are columns 0-15 of each row, so that the product of the next block's gates takes these along and that of
// what stands beside them the others.
struct Gating {
  const Sums *gate, *up;
  bf16* y;
  long stride, count, row = 0, rows = 0;
  __mmask32 inside;

  void start(const Sums& gates, const Sums& ups, long all, long columns, bf16* to, long to_stride) {
    gate = &gates, up = &ups, y = to, stride = to_stride, count = all, row = 0, rows = all;
    inside = columns_left(columns);
  }

  WITH_BF16 void some(long turns) {
    for (const long end = row + turns < rows ? row + turns : rows; row < end; row++) {
      const long half = row >= count, r = row - half * count, t = r / TILE * 2 + half;
      const __m512 g = rounded(gate->tile[t][r % TILE]), beside = rounded(up->tile[t][r % TILE]);
      narrow(y + r * stride + half * PANEL, _mm512_mul_ps(_mm512_mul_ps(g, opening(g)), beside),
             (__mmask16)(inside >> half * PANEL));
    }
  }

 private:
  WITH_BF16 static __m512 rounded(const float* x) {
    const __m256i bits = (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
};

// One thread's products, one after the other. Its sums may still be on their way until `finish`.
class Alone {
 public:
  WITH_TILES Alone() {
    if (tiles_allowed) open_tiles();
  }
  WITH_TILES ~Alone() {
    if (tiles_allowed) close_tiles();
  }
  Alone(const Alone&) = delete;

  // y (m, n) = x (m, k) times n columns, which begin with one whose number is a multiple of 16. k is even. Rows of x are
  // read, and mean nothing, up to a multiple of 16.
  WITH_TILES void multiply(const bf16* x, long stride, long m, const bf16* columns, long n, long k, bf16* y, long y_stride) {
    if (!by_tiles(k)) {
      for (long j = 0; j < n; j += COLUMNS)
        rows_by<HALVED ? 2 : 8>(x, stride, m, columns + j * k, k, y + j, y_stride, columns_left(n - j));
      return;
    }
    const Passing passing = passes(m, n, k);
    for (long i = 0; i < m; i += BLOCK_ROWS) {
      const long count = m - i < BLOCK_ROWS ? m - i : BLOCK_ROWS;
      for (long j = 0; j < n; j += COLUMNS) {
        const bf16* left = columns + j * k;
        Sums& sums = sums_[turn_++ % 2];
        ::multiply(passing, up(count, TILE), x + i * stride, stride, left, left + k * PANEL, k / DEEP, leaving_, sums);
        leaving_.start(sums, count, n - j, y + i * y_stride + j, y_stride, false);
      }
    }
  }

  // y (m, n) = gate * sigmoid(gate) * up, where gate and up are such products, each rounded. With tiles alone.
  WITH_TILES void multiply_gated(const bf16* x, long stride, long m, const bf16* gates, const bf16* ups, long n, long k,
                                 bf16* y, long y_stride) {
    const Passing passing = passes(m, n, k);
    for (long i = 0; i < m; i += BLOCK_ROWS) {
      const long count = m - i < BLOCK_ROWS ? m - i : BLOCK_ROWS;
      const bf16* rows = x + i * stride;
      for (long j = 0; j < n; j += COLUMNS) {
        Sums* sums = gate_sums_[turn_++ % 2];
        const bf16 *left = gates + j * k, *other = ups + j * k;
        ::multiply(passing, up(count, TILE), rows, stride, left, left + k * PANEL, k / DEEP, gating_, sums[0]);
        gating_.rows *= 2;  // what it has done is the first half
        ::multiply(passing, up(count, TILE), rows, stride, other, other + k * PANEL, k / DEEP, gating_, sums[1]);
        gating_.start(sums[0], sums[1], count, n - j, y + i * y_stride + j, y_stride);
      }
    }
  }

  // Every sum is in its place.
  void finish() {
    leaving_.some(leaving_.rows);
    gating_.some(gating_.rows);
    gating_.rows *= 2;
    gating_.some(gating_.rows);
    gating_.row = gating_.rows = 0;
  }

  static bool by_tiles(long k) { return tiles_allowed && k % DEEP == 0; }

 private:
  // Weights that come anew for each of many rows.
  static Passing passes(long m, long n, long k) {
    return k <= NEAR && m > 2 * BLOCK_ROWS && n > COLUMNS ? Passing::WEIGHTS : Passing::NOTHING;
  }

  Sums sums_[2], gate_sums_[2][2];  // some are filled while the others leave
  Leaving leaving_{};
  Gating gating_{};
  long turn_ = 0;
};

}  // namespace
