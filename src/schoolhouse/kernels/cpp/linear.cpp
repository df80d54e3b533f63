// Products of bf16 rows with packed weights, bf16, int8 or int4, for processors with AVX-512's bf16 dot products.
//
// A tile of 12 rows and 32 columns is summed in 24 registers. Weights lie in panels of 16 columns, pairs of neighbours
// along k side by side, as the instruction wants them; 32 columns stay in the cache while all rows pass them. Codes of
// 8 and of 4 bits are exact in bf16: they are widened as they are read, and the sum over each group of neighbours is
// taken times its scale in fp32. The next columns' weights are asked for while the first rows pass these, so that
// memory is read behind the arithmetic.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "matrix.h"
#include "tiled.h"

namespace {

constexpr long ROWS = HALVED ? 3 : 12, GROUP = 256, LINE = 64, FEW = 4;
constexpr long TASKS_A_THREAD = 4, FEWEST_TASKS_A_THREAD = 2, FEWEST_BLOCKS = 4;
constexpr long TILED_ROWS = 5;  // of codes, which tiles want widened first; bf16 is no slower by tiles from one row on

// Rows (m, k) as [k/2][m][2]: what a tile reads, in the order in which it reads it.
void pack_rows(const bf16* x, long stride, long m, long k, bf16* out) {
  for (long i = 0; i < m; i++) {
    const uint32_t* row = reinterpret_cast<const uint32_t*>(x + i * stride);
    uint32_t* to = reinterpret_cast<uint32_t*>(out) + i;
    for (long j = 0; j < k / 2; j++) to[j * m] = row[j];
  }
}

template <int R, class Weight>
WITH_BF16 inline void sum_pairs(__m512 (&sum)[R][2], const int* a, const Weight* weight, const Weight* second,
                                long from, long to, const char* ahead) {
#pragma GCC unroll 12
  for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (long j = from; j < to; j++) {
    if (R > FEW) __builtin_prefetch(ahead + j * LINE, 0, 2);
    const __m512bh left = pairs_of(beyond(weight, j * 2 * PANEL)), right = pairs_of(beyond(second, j * 2 * PANEL));
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
      const __m512bh both = (__m512bh)_mm512_set1_epi32(a[j * R + i]);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], both, left);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], both, right);
    }
  }
}

template <int R, Scaling S, class Weight>
WITH_BF16 void tile(const bf16* rows, const Weight* weight, Scales scales, long k, bf16* y, long stride, long columns,
                    const char* ahead) {
  const long pairs = k / 2;
  const int* a = reinterpret_cast<const int*>(rows);
  const Weight* second = beyond(weight, pairs * 2 * PANEL);
  __m512 sum[R][2];
  if constexpr (S == GROUPS) {
    __m512 total[R][2];
    for (int i = 0; i < R; i++) total[i][0] = total[i][1] = _mm512_setzero_ps();
    for (long from = 0; from < pairs; from += scales.pairs) {
      sum_pairs(sum, a, weight, second, from, from + scales.pairs, ahead);
      const float* own = scales.first + from / scales.pairs * scales.columns;
      const __m512 left = _mm512_loadu_ps(own), right = _mm512_loadu_ps(own + PANEL);
#pragma GCC unroll 12
      for (int i = 0; i < R; i++) {
        total[i][0] = _mm512_fmadd_ps(sum[i][0], left, total[i][0]);
        total[i][1] = _mm512_fmadd_ps(sum[i][1], right, total[i][1]);
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) sum[i][0] = total[i][0], sum[i][1] = total[i][1];
  } else {
    sum_pairs(sum, a, weight, second, 0, pairs, ahead);
    if (S == WHOLE) {
      const __m512 left = _mm512_loadu_ps(scales.first), right = _mm512_loadu_ps(scales.first + PANEL);
#pragma GCC unroll 12
      for (int i = 0; i < R; i++) {
        sum[i][0] = _mm512_mul_ps(sum[i][0], left);
        sum[i][1] = _mm512_mul_ps(sum[i][1], right);
      }
    }
  }
  const __mmask32 inside = columns >= COLUMNS ? ~0u : (1u << columns) - 1;
#pragma GCC unroll 12
  for (int i = 0; i < R; i++)
    _mm512_mask_storeu_epi16(y + i * stride, inside, (__m512i)_mm512_cvtne2ps_pbh(sum[i][1], sum[i][0]));
}

template <Scaling S, class Weight>
void tile_of(long r, const bf16* rows, const Weight* weight, Scales scales, long k, bf16* y, long stride, long columns,
             const char* ahead) {
  switch (r) {
#define ROWS_ARE(n) \
  case n: return tile<n, S>(rows, weight, scales, k, y, stride, columns, ahead);
    ROWS_ARE(1) ROWS_ARE(2) ROWS_ARE(3) ROWS_ARE(4) ROWS_ARE(5) ROWS_ARE(6)
    ROWS_ARE(7) ROWS_ARE(8) ROWS_ARE(9) ROWS_ARE(10) ROWS_ARE(11) ROWS_ARE(12)
#undef ROWS_ARE
  }
}

// The threads of a parallel region share the work; they do not wait for one another at its end.
template <Scaling S, class Weight>
void product(const bf16* x, long x_stride, const Weight* weight, Scales scales, bf16* y, long y_stride, long m, long n,
             long k, bf16* scratch) {
  const long blocks = up(m, ROWS), most = m / blocks, longer = m % blocks;  // as even as they can be
  const long tasks = TASKS_A_THREAD * omp_get_max_threads(), even = up(n, tasks * COLUMNS) * COLUMNS;
  const long group = even < GROUP ? even : GROUP, groups = up(n, group);
  const long kept = CACHED / (ROWS * k) < FEWEST_BLOCKS ? FEWEST_BLOCKS : CACHED / (ROWS * k);
  const long fewest = FEWEST_TASKS_A_THREAD * omp_get_max_threads();
  const long chunks = up(blocks, kept) * groups >= fewest ? up(blocks, kept) : up(fewest, groups);
  const long chunk = up(blocks, chunks) < FEWEST_BLOCKS ? FEWEST_BLOCKS : up(blocks, chunks);
  const auto first_of = [=](long block) { return block * most + (block < longer ? block : longer); };
  const bf16* packed = m > 1 ? scratch : x;  // one row lies packed
  if (m > 1) {
#pragma omp for schedule(static)
    for (long b = 0; b < blocks; b++)
      pack_rows(x + first_of(b) * x_stride, x_stride, first_of(b + 1) - first_of(b), k, scratch + first_of(b) * k);
  }
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
  for (long c = 0; c < up(blocks, chunk); c++)
    for (long g = 0; g < groups; g++)
      for (long j = g * group; j < n && j < (g + 1) * group; j += COLUMNS) {
        const Weight* own = beyond(weight, j * k);
        const Scales own_scales = {scales.first + j, scales.columns, scales.pairs};
        const char* next = (const char*)beyond(own, COLUMNS * k);
        for (long b = c * chunk; b < blocks && b < (c + 1) * chunk; b++) {
          const bf16* rows = packed + first_of(b) * k;
          const long turn = b - c * chunk, count = first_of(b + 1) - first_of(b);
          // Each of the first blocks asks for a part of what comes next.
          const char* ahead = turn < (long)sizeof(Weight) ? next + turn * (k / 2) * LINE : (const char*)rows;
          bf16* to = y + first_of(b) * y_stride + j;
          tile_of<S>(count, rows, own, own_scales, k, to, y_stride, n - j, ahead);
        }
      }
}

long rows_that_choose = 0;  // 0: those of the product itself

// Whether tiles take a product: enough rows, and each group of neighbours along k whole tiles.
bool by_tiles(long m, long k, long group, long fewest = TILED_ROWS) {
  const long rows = rows_that_choose ? rows_that_choose : m;
  return tiles_allowed && rows >= fewest && k % DEEP == 0 && group % DEEP == 0;
}

// One block of up to 32 rows times 32 columns whose panels are in the cache; `leaving` takes its sums to y.
template <Scaling S>
WITH_TILES void block(const bf16* rows, long stride, long count, const bf16* panels, Scales scales, long k, bf16* y,
                      long y_stride, long columns, bool large, Leaving& leaving, Sums& sums) {
  if (S != GROUPS) {
    multiply(up(count, TILE), rows, stride, panels, panels + k * PANEL, k / DEEP, leaving, sums);
  } else {
    const long span = 2 * scales.pairs;
    Sums part;
    leaving.some(leaving.rows);
    memset(&sums, 0, sizeof(sums));
    for (long at = 0; at < k; at += span) {
      const bf16* left = panels + at * PANEL;
      multiply(up(count, TILE), rows + at, stride, left, left + k * PANEL, span / DEEP, leaving, part);
      add_scaled(sums, part, scales.first + at / span * scales.columns, count);
    }
  }
  leaving.start(sums, S == WHOLE ? scales.first : nullptr, count, columns, y, y_stride, large);
}

// The same by tiles.
template <Scaling S, class Weight>
WITH_TILES void tiled_product(const bf16* x, long x_stride, const Weight* weight, Scales scales, bf16* y, long y_stride,
                              long m, long n, long k, bf16* scratch) {
  const long rest = m % TILE ? m % BLOCK_ROWS : 0, whole = m - rest;  // the last rows fill no tile: they get room
  if (rest) {
#pragma omp for schedule(static)
    for (long i = 0; i < rest; i++) memcpy(scratch + i * k, x + (whole + i) * x_stride, k * sizeof(bf16));
  }
  const long even = up(n, TASKS_A_THREAD * omp_get_max_threads() * COLUMNS) * COLUMNS;
  const long group = even < GROUP ? even : GROUP;
  const long chunks = up(m * k, CACHED), chunk = up(up(m, chunks), BLOCK_ROWS) * BLOCK_ROWS;
  open_tiles();
  bf16* room = sizeof(Weight) < sizeof(bf16) ? (bf16*)aligned_alloc(64, COLUMNS * k * sizeof(bf16)) : nullptr;
  Sums sums[2];  // one is filled while the other leaves
  Leaving leaving;
  long turn = 0;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
  for (long c = 0; c < m; c += chunk)
    for (long g = 0; g < n; g += group)
      for (long j = g; j < n && j < g + group; j += COLUMNS) {
        const bf16* panels = widened(beyond(weight, j * k), k, room);
        const Scales own = {scales.first + j, scales.columns, scales.pairs};
        for (long i = c; i < m && i < c + chunk; i += BLOCK_ROWS) {
          const bool copied = i >= whole;
          const long most = (copied ? m : whole) - i, count = most < BLOCK_ROWS ? most : BLOCK_ROWS;
          block<S>(copied ? scratch : x + i * x_stride, copied ? k : x_stride, count, panels, own, k,
                   y + i * y_stride + j, y_stride, n - j, m * n > 4 * CACHED, leaving, sums[turn++ % 2]);
        }
      }
  leaving.finish();
  free(room);
  close_tiles();
}

template <class Codes>
void coded_product(const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m, bf16* scratch) {
  const Codes* codes = (const Codes*)w.weight;
  const Scales all = {w.scales, up(w.n, COLUMNS) * COLUMNS, w.group / 2};
  const bool tiles = by_tiles(m, w.k, w.group), whole = w.group == w.k;
  if (tiles && whole) return tiled_product<WHOLE>(x, x_stride, codes, all, y, y_stride, m, w.n, w.k, scratch);
  if (tiles) return tiled_product<GROUPS>(x, x_stride, codes, all, y, y_stride, m, w.n, w.k, scratch);
  if (whole) return product<WHOLE>(x, x_stride, codes, all, y, y_stride, m, w.n, w.k, scratch);
  product<GROUPS>(x, x_stride, codes, all, y, y_stride, m, w.n, w.k, scratch);
}

}  // namespace

void multiply_rows(const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m, bf16* scratch) {
  if (w.bits == 8) return coded_product<int8_t>(x, x_stride, w, y, y_stride, m, scratch);
  if (w.bits == 4) return coded_product<Nibbles>(x, x_stride, w, y, y_stride, m, scratch);
  const bf16* weight = (const bf16*)w.weight;
  const Scales none = {nullptr, 0, 0};
  if (by_tiles(m, w.k, w.k, 1)) return tiled_product<NONE>(x, x_stride, weight, none, y, y_stride, m, w.n, w.k, scratch);
  product<NONE>(x, x_stride, weight, none, y, y_stride, m, w.n, w.k, scratch);
}

extern "C" {

// Products choose between their ways as if they had so many rows, until 0 is said: the two sum in different orders.
void choose_as(long rows) { rows_that_choose = rows; }

// Weights (n, k), k even, to panels [n/16][k/2][16][2], n filled up to 32 by zeros.
void pack_weight(const bf16* weight, long stride, long n, long k, bf16* out) {
  const long panels = up(n, COLUMNS) * (COLUMNS / PANEL), pairs = k / 2;
#pragma omp parallel for schedule(static)
  for (long p = 0; p < panels; p++)
    for (long c = 0; c < PANEL; c++) {
      const long column = p * PANEL + c;
      uint32_t* to = reinterpret_cast<uint32_t*>(out) + p * pairs * PANEL + c;
      const uint32_t* from = reinterpret_cast<const uint32_t*>(weight + column * stride);
      for (long j = 0; j < pairs; j++) to[j * PANEL] = column < n ? from[j] : 0;
    }
}

// Codes to panels [n/16][k/2][2][16]: the first of each pair for 16 columns, then the second.
void pack_codes(const int8_t* codes, long stride, long n, long k, int8_t* out) {
  const long panels = up(n, COLUMNS) * (COLUMNS / PANEL), pairs = k / 2;
#pragma omp parallel for schedule(static)
  for (long p = 0; p < panels; p++)
    for (long c = 0; c < PANEL; c++) {
      const long column = p * PANEL + c;
      int8_t* to = out + p * pairs * 2 * PANEL + c;
      for (long j = 0; j < k; j++) to[j * PANEL] = column < n ? codes[column * stride + j] : 0;
    }
}

// Codes of -8 to 7 to panels [n/16][k/2][16], a byte for two neighbours along k.
void pack_nibbles(const int8_t* codes, long stride, long n, long k, uint8_t* out) {
  const long panels = up(n, COLUMNS) * (COLUMNS / PANEL), pairs = k / 2;
#pragma omp parallel for schedule(static)
  for (long p = 0; p < panels; p++)
    for (long c = 0; c < PANEL; c++) {
      const long column = p * PANEL + c;
      for (long j = 0; j < pairs; j++) {
        const int8_t* from = codes + column * stride + 2 * j;
        out[(p * pairs + j) * PANEL + c] = column < n ? (from[0] + 8) | (from[1] + 8) << 4 : 0x88;
      }
    }
}

// y (m, n) = x (m, k) times the transpose of a packed matrix (n, k) of 16, 8 or 4 bits. Codes have scales (k / group, n),
// n filled up to 32; a group is a multiple of 2 and divides k. scratch: m * k numbers, and not below 32 * k.
void linear(const bf16* x, long x_stride, const void* weight, const float* scales, long group, long bits, bf16* y,
            long y_stride, long m, long n, long k, bf16* scratch) {
  const Matrix matrix = {weight, scales, group, n, k, bits};
#pragma omp parallel
  multiply_rows(x, x_stride, matrix, y, y_stride, m, scratch);
}

}  // extern "C"
