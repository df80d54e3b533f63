// Products of bf16 rows with packed codes of 8 or 4 bits, by whole numbers.
//
// A row becomes whole numbers of 16 bits, its largest +-32639, each as two of 8 bits: 256 * high + low. Codes times either
// are summed exactly by the instructions for bytes, AVX-512's dot products or AMX's tiles, so that a row's result has the
// same bits by either and for any number of rows. The rounding of a row, half of 1/32639 of its largest number, is far below
// that of the result to bf16. Codes lie in panels of 16 columns, four neighbours along k side by side, 128 or 8 added to
// each, for the dot products want one side without signs; what was added comes off again by the sum of the row's numbers.
// Many rows over codes with a scale for each group go by tiles of bf16 instead, codes times scales rounded to it: tiles of
// bytes would take a group at a time, twice for its two bytes, and a tile takes as long for 32 numbers as for 64.
// Source: the split of a number into two bytes is long multiplication; dynamic scales a row as in arXiv 2206.01861, section 4.

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#include "panels.h"

#ifdef BY_AVX2  // never called there
#define WITH_BYTE_TILES __attribute__((target("amx-tile,amx-int8")))
#else
#define WITH_BYTE_TILES \
  __attribute__((target("amx-tile,amx-int8,avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx512vnni")))
#endif

namespace {

constexpr long QUAD = 4;                      // neighbours along k that one lane of a register sums
constexpr long STEP = 64;                     // numbers along k that one tile instruction sums
constexpr long LINE = 64, AHEAD = 16 * LINE;  // bytes that memory hands over at once; how far ahead is asked for
constexpr float LARGEST = 32639;              // 127 * 256 + 127: both halves fit a signed byte
constexpr float TINY = 1e-30f;                // rows without a larger number count as 0
constexpr long ROWS = HALVED ? 2 : 6;
constexpr long MANY = 12;   // rows from which codes of groups are scaled and rounded to bf16 for its tiles
constexpr long FEW = 4;     // rows that each thread makes whole numbers of by itself, and that are no work for tiles
constexpr long TASK = 128;  // columns that a thread takes at once, at most

// How a matrix's codes and a row's whole numbers lie.
struct Layout {
  long k, filled, group, groups, row_bytes;
  int bits;

  explicit Layout(const Matrix& w)  // a group of less than all of k is a multiple of 8
      : k(w.k), filled(up(w.k, STEP) * STEP), group(w.group), groups(w.k / w.group),
        row_bytes(up(2 * filled + 4 + 8 * groups, LINE) * LINE), bits((int)w.bits) {}
  long panel_bytes() const { return filled * PANEL * bits / 8; }
};

// A row as whole numbers: high bytes, low bytes, both filled up by 0; its scale; for each group the sums of both.
struct Row {
  const int8_t *high, *low;
  float scale;
  const int32_t* sums;

  Row() {}
  Row(const int8_t* at, const Layout& l) : high(at), low(at + l.filled) {
    scale = *(const float*)(at + 2 * l.filled);
    sums = (const int32_t*)(at + 2 * l.filled + 4);
  }
};

WITH_BF16 void make_whole(const bf16* x, const Layout& l, int8_t* out) {
  uint16_t most = 0;
  for (long i = 0; i < l.k; i++) {
    const uint16_t size = x[i] & 0x7fff;
    most = size > most ? size : most;
  }
  const float largest = __builtin_bit_cast(float, (uint32_t)most << 16);
  const bool finite = most < 0x7f80, some = finite && largest > TINY;
  const float inverse = some ? LARGEST / largest : 0.0f;
  int8_t *high = out, *low = out + l.filled;
  *(float*)(out + 2 * l.filled) = finite ? (some ? largest / LARGEST : 0.0f) : NAN;
  int32_t* sums = (int32_t*)(out + 2 * l.filled + 4);
  for (long g = 0; g < l.groups; g++) {
    int32_t of_high = 0, of_low = 0;
    const long from = g * l.group, to = finite ? from + l.group : from;
    for (long i = from; i < to; i++) {
      const float exact = __builtin_bit_cast(float, (uint32_t)x[i] << 16) * inverse;
      const int32_t number = (int32_t)(exact + (exact < 0 ? -0.5f : 0.5f)), upper = (number + 128) >> 8;
      high[i] = (int8_t)upper, low[i] = (int8_t)(number - 256 * upper);
      of_high += upper, of_low += number - 256 * upper;
    }
    sums[2 * g] = of_high, sums[2 * g + 1] = of_low;
  }
  for (long i = finite ? l.k : 0; i < l.filled; i++) high[i] = low[i] = 0;
}

// Sums of codes times high and low bytes, what was added to the codes taken off: times 1/scale of the row what is meant.
WITH_BF16 inline __m512 joined_sums(__m512i high, __m512i low, const int32_t* sums, int added) {
  const __m512i h = _mm512_sub_epi32(high, _mm512_set1_epi32(added * sums[0]));
  const __m512i l = _mm512_sub_epi32(low, _mm512_set1_epi32(added * sums[1]));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(h), _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(l));
}

WITH_BF16 inline __m512i four_of(const int8_t* x) { return _mm512_set1_epi32(*(const int32_t*)x); }

template <int R>
WITH_BF16 inline void add_quad(__m512i (&high)[R][2], __m512i (&low)[R][2], const Row (&rows)[R], long at, __m512i left,
                                __m512i right) {
#pragma GCC unroll 6
  for (int i = 0; i < R; i++) {
    const __m512i h = four_of(rows[i].high + at), l = four_of(rows[i].low + at);
    high[i][0] = _mm512_dpbusd_epi32(high[i][0], left, h);
    low[i][0] = _mm512_dpbusd_epi32(low[i][0], left, l);
    high[i][1] = _mm512_dpbusd_epi32(high[i][1], right, h);
    low[i][1] = _mm512_dpbusd_epi32(low[i][1], right, l);
  }
}

// R rows times 32 columns.
template <int R, int BITS>
WITH_BF16 void few(const int8_t* whole, const Layout& l, const uint8_t* codes, const bf16* scales, bf16* y, long stride,
                    long columns) {
  constexpr int ADDED = 1 << (BITS - 1);
  const uint8_t* second = codes + l.panel_bytes();
  Row rows[R];
  for (int i = 0; i < R; i++) rows[i] = Row(whole + i * l.row_bytes, l);
  __m512 total[R][2];
#pragma GCC unroll 6
  for (int i = 0; i < R; i++) total[i][0] = total[i][1] = _mm512_setzero_ps();
  for (long g = 0; g < l.groups; g++) {
    __m512i high[R][2], low[R][2];
#pragma GCC unroll 6
    for (int i = 0; i < R; i++) high[i][0] = high[i][1] = low[i][0] = low[i][1] = _mm512_setzero_si512();
    const long last = l.groups == 1 ? l.filled : (g + 1) * l.group;
    for (long j = g * l.group; j < last; j += QUAD * 8 / BITS) {
      const uint8_t *a = codes + j * PANEL * BITS / 8, *b = second + j * PANEL * BITS / 8;
      __builtin_prefetch(a + AHEAD, 0, 2);
      __builtin_prefetch(b + AHEAD, 0, 2);
      const __m512i left = _mm512_loadu_si512(a), right = _mm512_loadu_si512(b);
      if (BITS == 8) {
        add_quad(high, low, rows, j, left, right);
      } else {
        const __m512i lower = _mm512_set1_epi32(0x0f0f0f0f);
        add_quad(high, low, rows, j, _mm512_and_si512(left, lower), _mm512_and_si512(right, lower));
        add_quad(high, low, rows, j + QUAD, _mm512_and_si512(_mm512_srli_epi32(left, 4), lower),
                 _mm512_and_si512(_mm512_srli_epi32(right, 4), lower));
      }
    }
    const __m512 left = widen(scales + g * COLUMNS), right = widen(scales + g * COLUMNS + PANEL);
#pragma GCC unroll 6
    for (int i = 0; i < R; i++) {
      const int32_t* sums = rows[i].sums + 2 * g;
      total[i][0] = _mm512_fmadd_ps(joined_sums(high[i][0], low[i][0], sums, ADDED), left, total[i][0]);
      total[i][1] = _mm512_fmadd_ps(joined_sums(high[i][1], low[i][1], sums, ADDED), right, total[i][1]);
    }
  }
  const __mmask32 inside = columns >= COLUMNS ? ~0u : (1u << columns) - 1;
#pragma GCC unroll 6
  for (int i = 0; i < R; i++) {
    const __m512 scale = _mm512_set1_ps(rows[i].scale);
    const __m512 a = _mm512_mul_ps(total[i][0], scale), b = _mm512_mul_ps(total[i][1], scale);
    _mm512_mask_storeu_epi16(y + i * stride, inside, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
}

template <int BITS>
void some_rows(long r, const int8_t* whole, const Layout& l, const uint8_t* codes, const bf16* scales, bf16* y, long stride,
               long columns) {
  switch (r) {
#define ROWS_ARE(n) \
  case n: return few<n, BITS>(whole, l, codes, scales, y, stride, columns);
    ROWS_ARE(1) ROWS_ARE(2) ROWS_ARE(3) ROWS_ARE(4) ROWS_ARE(5) ROWS_ARE(6)
#undef ROWS_ARE
  }
}

struct alignas(64) WholeSums {
  int32_t tile[4][TILE][TILE];  // high bytes with columns 0-15 and 16-31, then low bytes
};

// Sums of 16 rows and 32 columns on their way to bf16; the product of the next block takes a few rows along in each of its
// steps.
struct LeavingWhole {
  const WholeSums* sums = nullptr;
  const int8_t* whole = nullptr;
  const Layout* layout = nullptr;
  const bf16* scales = nullptr;
  bf16* y = nullptr;
  long stride = 0, row = 0, rows = 0;
  __mmask32 inside = 0;

  WITH_BF16 void take(long count) {
    const __m512 left = widen(scales), right = widen(scales + PANEL), none = _mm512_setzero_ps();
    for (const long end = row + count < rows ? row + count : rows; row < end; row++) {
      const Row own(whole + row * layout->row_bytes, *layout);
      const __m512 scale = _mm512_set1_ps(own.scale);
      const auto sum = [&](int t) WITH_BF16 { return _mm512_load_si512(sums->tile[t][row]); };
      const __m512 a = _mm512_fmadd_ps(joined_sums(sum(0), sum(2), own.sums, 128), left, none);
      const __m512 b = _mm512_fmadd_ps(joined_sums(sum(1), sum(3), own.sums, 128), right, none);
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(b, scale), _mm512_mul_ps(a, scale));
      _mm512_mask_storeu_epi16(y + row * stride, inside, both);
    }
  }
};

// 16 rows times 32 columns of codes of 8 bits by tiles of bytes; y: `count` of the rows.
WITH_BYTE_TILES inline void tiled_block(const int8_t* whole, const Layout& l, const uint8_t* codes, LeavingWhole& before,
                                        WholeSums& out) {
  const uint8_t* second = codes + l.panel_bytes();
  const long along = up(before.rows - before.row, l.filled / STEP);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long j = 0; j < l.filled; j += STEP) {
    _tile_loadd(4, whole + j, l.row_bytes);
    _tile_loadd(6, codes + j * PANEL, LINE);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, second + j * PANEL, LINE);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, whole + l.filled + j, l.row_bytes);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
    if (before.row < before.rows) before.take(along);
  }
  _tile_stored(0, out.tile[0], LINE);
  _tile_stored(1, out.tile[1], LINE);
  _tile_stored(2, out.tile[2], LINE);
  _tile_stored(3, out.tile[3], LINE);
}

// Where the codes of 32 columns from j on lie, and their scales.
inline const uint8_t* codes_at(const Matrix& w, const Layout& l, long j) {
  return (const uint8_t*)w.weight + j / PANEL * l.panel_bytes();
}
inline const bf16* scales_at(const Matrix& w, const Layout& l, long j) { return (const bf16*)w.scales + j * l.groups; }

inline long task_columns(long n) {
  const long even = up(n, 4 * omp_get_max_threads() * COLUMNS) * COLUMNS;
  return even < TASK ? even : TASK;
}

WITH_BYTE_TILES void by_byte_tiles(const int8_t* whole, const Matrix& w, const Layout& l, bf16* y, long y_stride, long m) {
  const long task = task_columns(w.n), chunks = up(m * l.row_bytes, 2 * CACHED), chunk = up(up(m, chunks), TILE) * TILE;
  open_tiles();
  WholeSums sums[2];  // one is filled while the other leaves
  LeavingWhole leaving;
  long turn = 0;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
  for (long c = 0; c < m; c += chunk)
    for (long g = 0; g < w.n; g += task)
      for (long j = g; j < w.n && j < g + task; j += COLUMNS)
        for (long i = c; i < m && i < c + chunk; i += TILE) {
          WholeSums& own = sums[turn++ % 2];
          const int8_t* rows = whole + i * l.row_bytes;
          tiled_block(rows, l, codes_at(w, l, j), leaving, own);
          if (leaving.row < leaving.rows) leaving.take(leaving.rows);
          leaving.sums = &own, leaving.whole = rows, leaving.layout = &l, leaving.scales = scales_at(w, l, j);
          leaving.y = y + i * y_stride + j, leaving.stride = y_stride, leaving.row = 0;
          leaving.rows = m - i < TILE ? m - i : TILE;
          leaving.inside = w.n - j >= COLUMNS ? ~0u : (1u << (w.n - j)) - 1;
        }
  if (leaving.row < leaving.rows) leaving.take(leaving.rows);
  close_tiles();
}

// A line of codes, 4 neighbours of 16 columns as bytes, times scales: two lines of pairs in bf16. moved: -added * scales.
WITH_BF16 inline void scale_quad(__m512i line, __m512 scales, __m512 moved, __m512i order, bf16* out) {
  const __m512i byte = _mm512_set1_epi32(0xff);
  __m512 x[QUAD];
  x[0] = _mm512_cvtepi32_ps(_mm512_and_si512(line, byte));
  x[1] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(line, 8), byte));
  x[2] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(line, 16), byte));
  x[3] = _mm512_cvtepi32_ps(_mm512_srli_epi32(line, 24));
  for (int i = 0; i < 4; i++) x[i] = _mm512_fmadd_ps(x[i], scales, moved);
  const __m512i first = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]), then = (__m512i)_mm512_cvtne2ps_pbh(x[3], x[2]);
  _mm512_store_si512((__m512i*)out, _mm512_permutexvar_epi16(order, first));
  _mm512_store_si512((__m512i*)(out + DEEP), _mm512_permutexvar_epi16(order, then));
}

// Two panels of codes times scales, rounded to bf16, as tiles of bf16 want them: one panel behind the other.
template <int BITS>
WITH_BF16 void scaled_panels(const uint8_t* codes, const bf16* scales, const Layout& l, bf16* out) {
  alignas(64) uint16_t places[32];
  for (int i = 0; i < 32; i++) places[i] = i / 2 + i % 2 * 16;
  const __m512i order = _mm512_load_si512(places), lower = _mm512_set1_epi32(0x0f0f0f0f);
  const __m512 added = _mm512_set1_ps(-(1 << (BITS - 1)));
  for (long p = 0; p < 2; p++, codes += l.panel_bytes(), scales += PANEL, out += l.k * PANEL)
    for (long g = 0; g < l.groups; g++) {
      const __m512 own = widen(scales + g * COLUMNS), moved = _mm512_mul_ps(own, added);
      for (long j = g * l.group; j < (g + 1) * l.group; j += QUAD * 8 / BITS) {
        const __m512i line = _mm512_loadu_si512(codes + j * PANEL * BITS / 8);
        if (BITS == 8) {
          scale_quad(line, own, moved, order, out + j * PANEL);
        } else {
          scale_quad(_mm512_and_si512(line, lower), own, moved, order, out + j * PANEL);
          scale_quad(_mm512_and_si512(_mm512_srli_epi32(line, 4), lower), own, moved, order, out + (j + QUAD) * PANEL);
        }
      }
    }
}

// Many rows by tiles of bf16 over codes times scales.
void by_scaled_tiles(const bf16* x, long x_stride, const Matrix& w, const Layout& l, bf16* y, long y_stride, long m,
                     bf16* scratch, bool filled) {
  bf16* room = (bf16*)aligned_alloc(LINE, COLUMNS * w.k * sizeof(bf16));
  const auto scaled = [&](long j) {
    (w.bits == 8 ? scaled_panels<8> : scaled_panels<4>)(codes_at(w, l, j), scales_at(w, l, j), l, room);
    return (const bf16*)room;
  };
  by_panels(scaled, x, x_stride, w, y, y_stride, m, scratch, filled);
  free(room);
}

template <int BITS>
void by_dot_products(const bf16* x, long x_stride, const int8_t* shared, const Matrix& w, const Layout& l, bf16* y,
                     long y_stride, long m) {
  int8_t* own = m <= FEW ? (int8_t*)aligned_alloc(LINE, FEW * l.row_bytes) : nullptr;
  for (long i = 0; own && i < m; i++) make_whole(x + i * x_stride, l, own + i * l.row_bytes);
  const int8_t* whole = own ? own : shared;
  const long task = task_columns(w.n);
#pragma omp for schedule(dynamic, 1) nowait
  for (long g = 0; g < w.n; g += task)
    for (long j = g; j < w.n && j < g + task; j += COLUMNS)
      for (long i = 0; i < m; i += ROWS)
        some_rows<BITS>(m - i < ROWS ? m - i : ROWS, whole + i * l.row_bytes, l, codes_at(w, l, j), scales_at(w, l, j),
                        y + i * y_stride + j, y_stride, w.n - j);
  free(own);
}

}  // namespace

void multiply_codes(const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m, bf16* scratch,
                    bool filled) {
  const Layout l(w);
  const bool whole_rows = l.groups == 1 && w.bits == 8;
  if (tiles_allowed && !whole_rows && rows_like(m) >= MANY && w.k % DEEP == 0)
    return by_scaled_tiles(x, x_stride, w, l, y, y_stride, m, scratch, filled);
  int8_t* whole = (int8_t*)(((uintptr_t)scratch + LINE - 1) / LINE * LINE);
  if (m > FEW) {
#pragma omp for schedule(static)
    for (long i = 0; i < m; i++) make_whole(x + i * x_stride, l, whole + i * l.row_bytes);
  }
  if (tiles_allowed && m > FEW && whole_rows) return by_byte_tiles(whole, w, l, y, y_stride, m);
  if (w.bits == 8) return by_dot_products<8>(x, x_stride, whole, w, l, y, y_stride, m);
  by_dot_products<4>(x, x_stride, whole, w, l, y, y_stride, m);
}

extern "C" {

// Codes (n, k) of 8 or 4 bits to panels [n/16][k/4][16][4], 128 added to each, or [n/16][k/8][16][4], 8 added, four
// neighbours in the lower halves of bytes and the next four in the upper ones. n is filled up to 32, k to 64.
void pack_codes(const int8_t* codes, long stride, long n, long k, long bits, uint8_t* out) {
  const Layout l({nullptr, nullptr, k, n, k, bits});
  const long panels = up(n, COLUMNS) * (COLUMNS / PANEL), added = 1 << (bits - 1);
#pragma omp parallel for schedule(static)
  for (long p = 0; p < panels; p++)
    for (long j = 0; j < l.filled; j++)
      for (long c = 0; c < PANEL; c++) {
        const long column = p * PANEL + c;
        const uint8_t code = column < n && j < k ? codes[column * stride + j] + added : added;
        uint8_t* panel = out + p * l.panel_bytes();
        if (bits == 8) {
          panel[j / QUAD * LINE + c * QUAD + j % QUAD] = code;
        } else {
          uint8_t* both = panel + j / 8 * LINE + c * QUAD + j % QUAD;
          *both = j % 8 < QUAD ? code : *both | code << 4;
        }
      }
}

}  // extern "C"
