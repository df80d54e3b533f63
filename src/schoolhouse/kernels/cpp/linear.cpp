// Products of bf16 rows with packed weights, for processors with AVX-512's bf16 dot products.
//
// A tile of 12 rows and 32 columns is summed in 24 registers. Weights lie in panels of 16 columns, pairs of neighbours
// along k side by side, as the instruction wants them; 32 columns stay in the cache while all rows pass them. The next
// columns' weights are asked for while the first rows pass these, so that memory is read behind the arithmetic.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#include "panels.h"

namespace {

constexpr long ROWS = HALVED ? 3 : 12, LINE = 64, FEW = 4;
constexpr long FEWEST_TASKS_A_THREAD = 2, FEWEST_BLOCKS = 4;

// Rows (m, k) as [k/2][m][2]: what a tile reads, in the order in which it reads it.
void pack_rows(const bf16* x, long stride, long m, long k, bf16* out) {
  for (long i = 0; i < m; i++) {
    const uint32_t* row = reinterpret_cast<const uint32_t*>(x + i * stride);
    uint32_t* to = reinterpret_cast<uint32_t*>(out) + i;
    for (long j = 0; j < k / 2; j++) to[j * m] = row[j];
  }
}

template <int R>
WITH_BF16 void tile(const bf16* rows, const bf16* weight, long k, bf16* y, long stride, long columns, const char* ahead) {
  const int* a = reinterpret_cast<const int*>(rows);
  const bf16* second = weight + k * PANEL;
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (long j = 0; j < k / 2; j++) {
    if (R > FEW) __builtin_prefetch(ahead + j * LINE, 0, 2);
    const __m512bh left = pairs_of(weight + j * 2 * PANEL), right = pairs_of(second + j * 2 * PANEL);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
      const __m512bh both = (__m512bh)_mm512_set1_epi32(a[j * R + i]);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], both, left);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], both, right);
    }
  }
  const __mmask32 inside = columns >= COLUMNS ? ~0u : (1u << columns) - 1;
#pragma GCC unroll 12
  for (int i = 0; i < R; i++)
    _mm512_mask_storeu_epi16(y + i * stride, inside, (__m512i)_mm512_cvtne2ps_pbh(sum[i][1], sum[i][0]));
}

void tile_of(long r, const bf16* rows, const bf16* weight, long k, bf16* y, long stride, long columns, const char* ahead) {
  switch (r) {
#define ROWS_ARE(n) \
  case n: return tile<n>(rows, weight, k, y, stride, columns, ahead);
    ROWS_ARE(1) ROWS_ARE(2) ROWS_ARE(3) ROWS_ARE(4) ROWS_ARE(5) ROWS_ARE(6)
    ROWS_ARE(7) ROWS_ARE(8) ROWS_ARE(9) ROWS_ARE(10) ROWS_ARE(11) ROWS_ARE(12)
#undef ROWS_ARE
  }
}

// The threads of a parallel region share the work; they do not wait for one another at its end.
void product(const bf16* x, long x_stride, const bf16* weight, bf16* y, long y_stride, long m, long n, long k,
             bf16* scratch) {
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
        const bf16* own = weight + j * k;
        const char* next = (const char*)(own + COLUMNS * k);
        for (long b = c * chunk; b < blocks && b < (c + 1) * chunk; b++) {
          const bf16* rows = packed + first_of(b) * k;
          const long turn = b - c * chunk, count = first_of(b + 1) - first_of(b);
          // Each of the first blocks asks for a part of what comes next.
          const char* ahead = turn < (long)sizeof(bf16) ? next + turn * (k / 2) * LINE : (const char*)rows;
          tile_of(count, rows, own, k, y + first_of(b) * y_stride + j, y_stride, n - j, ahead);
        }
      }
}

long rows_that_choose = 0;  // 0: those of the product itself

}  // namespace

long rows_like(long m) { return rows_that_choose ? rows_that_choose : m; }

void multiply_rows(const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m, bf16* scratch, bool filled) {
  if (w.bits < 16) return multiply_codes(x, x_stride, w, y, y_stride, m, scratch, filled);
  const bf16* weight = (const bf16*)w.weight;
  if (tiles_allowed && w.k % DEEP == 0)
    return by_panels([=, &w](long j) { return weight + j * w.k; }, x, x_stride, w, y, y_stride, m, scratch, filled);
  product(x, x_stride, weight, y, y_stride, m, w.n, w.k, scratch);
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

// y (m, n) = x (m, k) times the transpose of a packed matrix (n, k) of 16, 8 or 4 bits. Codes have scales in bf16,
// (n / 32, k / group, 32), n filled up to 32; a group is a multiple of 32 or all of k. scratch: see `multiply_rows`.
void linear(const bf16* x, long x_stride, const void* weight, const void* scales, long group, long bits, bf16* y,
            long y_stride, long m, long n, long k, bf16* scratch) {
  const Matrix matrix = {weight, scales, group, n, k, bits};
#pragma omp parallel
  multiply_rows(x, x_stride, matrix, y, y_stride, m, scratch);
}

}  // extern "C"
