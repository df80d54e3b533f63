// Products of bf16 rows with packed bf16 weights, for processors with AVX-512's bf16 dot products.
//
// A tile of 12 rows and 32 columns is summed in 24 registers. Weights lie in panels of 16 columns, pairs of neighbours
// along k side by side, as the instruction wants them; 256 columns stay in the second cache while all rows pass them.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>

typedef uint16_t bf16;

#define WITH_BF16 __attribute__((target("avx512f,avx512bf16,avx512bw,avx512vl,avx512dq")))

namespace {

constexpr long PANEL = 16, COLUMNS = 32, ROWS = 12, GROUP = 256;
constexpr long TASKS_A_THREAD = 4, FEWEST_BLOCKS = 4;

long up(long n, long d) { return (n + d - 1) / d; }

// Rows (m, k) as [k/2][m][2]: what a tile reads, in the order in which it reads it.
void pack_rows(const bf16* x, long stride, long m, long k, bf16* out) {
  for (long i = 0; i < m; i++) {
    const uint32_t* row = reinterpret_cast<const uint32_t*>(x + i * stride);
    uint32_t* to = reinterpret_cast<uint32_t*>(out) + i;
    for (long j = 0; j < k / 2; j++) to[j * m] = row[j];
  }
}

template <int R>
WITH_BF16 void tile(const bf16* rows, const bf16* weight, long k, bf16* y, long stride, long columns) {
  const long pairs = k / 2;
  const int* a = reinterpret_cast<const int*>(rows);
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (long j = 0; j < pairs; j++) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(weight + j * 2 * PANEL);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(weight + (pairs + j) * 2 * PANEL);
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

void tile_of(long r, const bf16* rows, const bf16* weight, long k, bf16* y, long stride, long columns) {
  switch (r) {
#define ROWS_ARE(n) case n: return tile<n>(rows, weight, k, y, stride, columns);
    ROWS_ARE(1) ROWS_ARE(2) ROWS_ARE(3) ROWS_ARE(4) ROWS_ARE(5) ROWS_ARE(6)
    ROWS_ARE(7) ROWS_ARE(8) ROWS_ARE(9) ROWS_ARE(10) ROWS_ARE(11) ROWS_ARE(12)
#undef ROWS_ARE
  }
}

}  // namespace

extern "C" {

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

// y (m, n) = x (m, k) times the transpose of a packed weight (n, k). scratch: m * k numbers.
void linear(const bf16* x, long x_stride, const bf16* weight, bf16* y, long y_stride, long m, long n, long k,
            bf16* scratch) {
  const long blocks = up(m, ROWS), most = m / blocks, longer = m % blocks;  // as even as they can be
  const long groups = up(n, GROUP), tasks = TASKS_A_THREAD * omp_get_max_threads();
  long chunk = groups >= tasks ? blocks : up(blocks, up(tasks, groups));
  if (chunk < FEWEST_BLOCKS) chunk = FEWEST_BLOCKS;
  const auto first_of = [=](long block) { return block * most + (block < longer ? block : longer); };
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long b = 0; b < blocks; b++)
      pack_rows(x + first_of(b) * x_stride, x_stride, first_of(b + 1) - first_of(b), k, scratch + first_of(b) * k);
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (long g = 0; g < groups; g++)
      for (long c = 0; c < up(blocks, chunk); c++)
        for (long b = c * chunk; b < blocks && b < (c + 1) * chunk; b++)
          for (long j = g * GROUP; j < n && j < (g + 1) * GROUP; j += COLUMNS)
            tile_of(first_of(b + 1) - first_of(b), scratch + first_of(b) * k, weight + j * k, k,
                    y + first_of(b) * y_stride + j, y_stride, n - j);
  }
}

}  // extern "C"
