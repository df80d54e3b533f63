// Products of bf16 rows with packed weights, bf16 or int8, for processors with AVX-512's bf16 dot products.
//
// A tile of 12 rows and 32 columns is summed in 24 registers. Weights lie in panels of 16 columns, pairs of neighbours
// along k side by side, as the instruction wants them; 32 columns stay in the cache while all rows pass them. int8 codes
// are exact in bf16: they are widened once for all rows, and a column's scale is applied to its sum. The next columns'
// weights are asked for while the first rows pass these, so that memory is read behind the arithmetic.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint16_t bf16;

#define WITH_BF16 __attribute__((target("avx512f,avx512bf16,avx512bw,avx512vl,avx512dq")))

namespace {

constexpr long PANEL = 16, COLUMNS = 32, ROWS = 12, GROUP = 256, LINE = 64, FEW = 4;
constexpr long TASKS_A_THREAD = 4, FEWEST_BLOCKS = 4, CACHED = 1 << 19;  // CACHED: numbers that stay in the second cache

long up(long n, long d) { return (n + d - 1) / d; }

// Rows (m, k) as [k/2][m][2]: what a tile reads, in the order in which it reads it.
void pack_rows(const bf16* x, long stride, long m, long k, bf16* out) {
  for (long i = 0; i < m; i++) {
    const uint32_t* row = reinterpret_cast<const uint32_t*>(x + i * stride);
    uint32_t* to = reinterpret_cast<uint32_t*>(out) + i;
    for (long j = 0; j < k / 2; j++) to[j * m] = row[j];
  }
}

// Two neighbours along k of each of 16 columns.
WITH_BF16 inline __m512bh pairs_of(const bf16* weight) { return (__m512bh)_mm512_loadu_si512(weight); }

WITH_BF16 inline __m512bh pairs_of(const int8_t* weight) {
  const __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)weight));
  const __m512i high = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)weight + 1));
  return _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(high), _mm512_cvtepi32_ps(low));
}

template <int R, class Weight>
WITH_BF16 void tile(const bf16* rows, const Weight* weight, const float* scales, long k, bf16* y, long stride,
                    long columns, const char* ahead) {
  const long pairs = k / 2;
  const int* a = reinterpret_cast<const int*>(rows);
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (long j = 0; j < pairs; j++) {
    if (R > FEW) __builtin_prefetch(ahead + j * LINE, 0, 2);
    const __m512bh left = pairs_of(weight + j * 2 * PANEL), right = pairs_of(weight + (pairs + j) * 2 * PANEL);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) {
      const __m512bh both = (__m512bh)_mm512_set1_epi32(a[j * R + i]);
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], both, left);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], both, right);
    }
  }
  if (scales) {
    const __m512 left = _mm512_loadu_ps(scales), right = _mm512_loadu_ps(scales + PANEL);
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) sum[i][0] = _mm512_mul_ps(sum[i][0], left), sum[i][1] = _mm512_mul_ps(sum[i][1], right);
  }
  const __mmask32 inside = columns >= COLUMNS ? ~0u : (1u << columns) - 1;
#pragma GCC unroll 12
  for (int i = 0; i < R; i++)
    _mm512_mask_storeu_epi16(y + i * stride, inside, (__m512i)_mm512_cvtne2ps_pbh(sum[i][1], sum[i][0]));
}

template <class Weight>
void tile_of(long r, const bf16* rows, const Weight* weight, const float* scales, long k, bf16* y, long stride,
             long columns, const char* ahead) {
  switch (r) {
#define ROWS_ARE(n) case n: return tile<n>(rows, weight, scales, k, y, stride, columns, ahead);
    ROWS_ARE(1) ROWS_ARE(2) ROWS_ARE(3) ROWS_ARE(4) ROWS_ARE(5) ROWS_ARE(6)
    ROWS_ARE(7) ROWS_ARE(8) ROWS_ARE(9) ROWS_ARE(10) ROWS_ARE(11) ROWS_ARE(12)
#undef ROWS_ARE
  }
}

WITH_BF16 void widen(const int8_t* codes, long count, bf16* out) {
  for (long i = 0; i < count; i += 2 * PANEL) _mm512_store_si512(out + i, (__m512i)pairs_of(codes + i));
}

template <class Weight>
void product(const bf16* x, long x_stride, const Weight* weight, const float* scales, bf16* y, long y_stride, long m,
             long n, long k, bf16* scratch) {
  const long blocks = up(m, ROWS), most = m / blocks, longer = m % blocks;  // as even as they can be
  const long tasks = TASKS_A_THREAD * omp_get_max_threads(), even = up(n, tasks * COLUMNS) * COLUMNS;
  const long group = even < GROUP ? even : GROUP, groups = up(n, group);
  const long kept = CACHED / (ROWS * k) < FEWEST_BLOCKS ? FEWEST_BLOCKS : CACHED / (ROWS * k);
  const long chunks = up(blocks, kept) * groups >= tasks ? up(blocks, kept) : up(tasks, groups);
  const long chunk = up(blocks, chunks) < FEWEST_BLOCKS ? FEWEST_BLOCKS : up(blocks, chunks);
  const auto first_of = [=](long block) { return block * most + (block < longer ? block : longer); };
#pragma omp parallel
  {
    bf16* wide = nullptr;
    if (sizeof(Weight) == 1 && blocks > 1) wide = (bf16*)aligned_alloc(64, k * COLUMNS * sizeof(bf16));
#pragma omp for schedule(static)
    for (long b = 0; b < blocks; b++)
      pack_rows(x + first_of(b) * x_stride, x_stride, first_of(b + 1) - first_of(b), k, scratch + first_of(b) * k);
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (long c = 0; c < up(blocks, chunk); c++)
      for (long g = 0; g < groups; g++)
        for (long j = g * group; j < n && j < (g + 1) * group; j += COLUMNS) {
          const float* own = scales ? scales + j : nullptr;
          if constexpr (sizeof(Weight) == 1)
            if (wide) widen(weight + j * k, k * COLUMNS, wide);
          for (long b = c * chunk; b < blocks && b < (c + 1) * chunk; b++) {
            const bf16* rows = scratch + first_of(b) * k;
            const long turn = b - c * chunk;  // each of the first ones asks for a part of what comes next
            const char* next = (const char*)(weight + (j + COLUMNS) * k) + turn * (k / 2) * LINE;
            const char* ahead = turn < (long)sizeof(Weight) ? next : (const char*)rows;
            bf16* to = y + first_of(b) * y_stride + j;
            if (wide)
              tile_of(first_of(b + 1) - first_of(b), rows, wide, own, k, to, y_stride, n - j, ahead);
            else
              tile_of(first_of(b + 1) - first_of(b), rows, weight + j * k, own, k, to, y_stride, n - j, ahead);
          }
        }
    free(wide);
  }
}

template <class Pair, class Weight>
void pack(const Weight* weight, long stride, long n, long k, Weight* out) {
  const long panels = up(n, COLUMNS) * (COLUMNS / PANEL), pairs = k / 2;
#pragma omp parallel for schedule(static)
  for (long p = 0; p < panels; p++)
    for (long c = 0; c < PANEL; c++) {
      const long column = p * PANEL + c;
      Pair* to = reinterpret_cast<Pair*>(out) + p * pairs * PANEL + c;
      const Pair* from = reinterpret_cast<const Pair*>(weight + column * stride);
      for (long j = 0; j < pairs; j++) to[j * PANEL] = column < n ? from[j] : 0;
    }
}

}  // namespace

extern "C" {

// Weights (n, k), k even, to panels [n/16][k/2][16][2], n filled up to 32 by zeros.
void pack_weight(const bf16* weight, long stride, long n, long k, bf16* out) {
  pack<uint32_t>(weight, stride, n, k, out);
}

void pack_codes(const int8_t* codes, long stride, long n, long k, int8_t* out) {
  pack<uint16_t>(codes, stride, n, k, out);
}

// y (m, n) = x (m, k) times the transpose of a packed weight (n, k). scratch: m * k numbers.
void linear(const bf16* x, long x_stride, const bf16* weight, bf16* y, long y_stride, long m, long n, long k,
            bf16* scratch) {
  product(x, x_stride, weight, nullptr, y, y_stride, m, n, k, scratch);
}

// The same with packed int8 codes and a scale for each of the n columns, filled up to 32.
void linear_of_codes(const bf16* x, long x_stride, const int8_t* codes, const float* scales, bf16* y, long y_stride,
                     long m, long n, long k, bf16* scratch) {
  product(x, x_stride, codes, scales, y, y_stride, m, n, k, scratch);
}

}  // extern "C"
