// Products of bf16 rows with packed weights, bf16, int8 or int4, for processors with AVX-512's bf16 dot products.
//
// A tile of 12 rows and 32 columns is summed in 24 registers. Weights lie in panels of 16 columns, pairs of neighbours
// along k side by side, as the instruction wants them; 32 columns stay in the cache while all rows pass them. Codes of
// 8 and of 4 bits are exact in bf16: they are widened as they are read, and the sum over each group of neighbours is
// taken times its scale in fp32. The next columns' weights are asked for while the first rows pass these, so that
// memory is read behind the arithmetic.
// Source: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", 2008 (blocks for the caches).

#include <omp.h>

#include "lanes.h"

namespace {

constexpr long PANEL = 16, COLUMNS = 32, ROWS = 12, GROUP = 256, LINE = 64, FEW = 4;
constexpr long TASKS_A_THREAD = 4, FEWEST_TASKS_A_THREAD = 2, FEWEST_BLOCKS = 4;
constexpr long CACHED = 1 << 19;  // numbers that stay in the second cache

long up(long n, long d) { return (n + d - 1) / d; }

// Rows (m, k) as [k/2][m][2]: what a tile reads, in the order in which it reads it.
void pack_rows(const bf16* x, long stride, long m, long k, bf16* out) {
  for (long i = 0; i < m; i++) {
    const uint32_t* row = reinterpret_cast<const uint32_t*>(x + i * stride);
    uint32_t* to = reinterpret_cast<uint32_t*>(out) + i;
    for (long j = 0; j < k / 2; j++) to[j * m] = row[j];
  }
}

// Two codes of 4 bits, 8 added to each, the first one low.
struct Nibbles {
  uint8_t both;
};

// Scales of groups of so many pairs along k: (groups, columns).
struct Scales {
  const float* first;
  long columns, pairs;
};

enum Scaling { NONE, WHOLE, GROUPS };  // of sums: not at all, a column's by one scale, or by one for each group

// Weights further on by so many.
inline const bf16* beyond(const bf16* weight, long count) { return weight + count; }
inline const int8_t* beyond(const int8_t* codes, long count) { return codes + count; }
inline const Nibbles* beyond(const Nibbles* codes, long count) { return codes + count / 2; }

// Two neighbours along k of each of 16 columns.
WITH_BF16 inline __m512bh pairs_of(const bf16* weight) { return (__m512bh)_mm512_loadu_si512(weight); }

WITH_BF16 inline __m512bh pairs_of(const int8_t* codes) {
  const __m512i even = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
  const __m512i odd = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes + 1)));
  return (__m512bh)_mm512_or_si512(_mm512_srli_epi32(even, 16), odd);  // codes are exact in their upper halves
}

WITH_BF16 inline __m512bh pairs_of(const Nibbles* codes) {
#define NUMBERS 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, \
                0x40a0, 0x40c0, 0x40e0
  alignas(64) static constexpr bf16 NUMBER[32] = {NUMBERS, NUMBERS};  // -8 to 7; of a place only 5 bits are looked at
#undef NUMBERS
  const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
  const __m512i places = _mm512_or_si512(both, _mm512_slli_epi32(both, 12));
  return (__m512bh)_mm512_permutexvar_epi16(places, _mm512_load_si512(NUMBER));
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
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long b = 0; b < blocks; b++)
      pack_rows(x + first_of(b) * x_stride, x_stride, first_of(b + 1) - first_of(b), k, scratch + first_of(b) * k);
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (long c = 0; c < up(blocks, chunk); c++)
      for (long g = 0; g < groups; g++)
        for (long j = g * group; j < n && j < (g + 1) * group; j += COLUMNS) {
          const Weight* own = beyond(weight, j * k);
          const Scales own_scales = {scales.first + j, scales.columns, scales.pairs};
          const char* next = (const char*)beyond(own, COLUMNS * k);
          for (long b = c * chunk; b < blocks && b < (c + 1) * chunk; b++) {
            const bf16* rows = scratch + first_of(b) * k;
            const long turn = b - c * chunk, count = first_of(b + 1) - first_of(b);
            // Each of the first blocks asks for a part of what comes next.
            const char* ahead = turn < (long)sizeof(Weight) ? next + turn * (k / 2) * LINE : (const char*)rows;
            bf16* to = y + first_of(b) * y_stride + j;
            tile_of<S>(count, rows, own, own_scales, k, to, y_stride, n - j, ahead);
          }
        }
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

// y (m, n) = x (m, k) times the transpose of a packed weight (n, k). scratch: m * k numbers.
void linear(const bf16* x, long x_stride, const bf16* weight, bf16* y, long y_stride, long m, long n, long k,
            bf16* scratch) {
  product<NONE>(x, x_stride, weight, {nullptr, 0, 0}, y, y_stride, m, n, k, scratch);
}

// The same with packed codes and scales (k / group, n), n filled up to 32; a group is a multiple of 2 and divides k.
void linear_of_codes(const bf16* x, long x_stride, const int8_t* codes, const float* scales, long group, bf16* y,
                     long y_stride, long m, long n, long k, bf16* scratch) {
  const Scales all = {scales, up(n, COLUMNS) * COLUMNS, group / 2};
  if (group == k) return product<WHOLE>(x, x_stride, codes, all, y, y_stride, m, n, k, scratch);
  product<GROUPS>(x, x_stride, codes, all, y, y_stride, m, n, k, scratch);
}

void linear_of_nibbles(const bf16* x, long x_stride, const uint8_t* codes, const float* scales, long group, bf16* y,
                       long y_stride, long m, long n, long k, bf16* scratch) {
  const Scales all = {scales, up(n, COLUMNS) * COLUMNS, group / 2};
  product<GROUPS>(x, x_stride, (const Nibbles*)codes, all, y, y_stride, m, n, k, scratch);
}

}  // extern "C"
