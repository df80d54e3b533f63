// The innermost product by AMX's tiles: up to 32 rows times 32 columns of packed weights, sums in four tiles.

#pragma once

#include "packed.h"
#include "tiles.h"

namespace {

constexpr long BLOCK_ROWS = 2 * TILE;

struct alignas(64) Sums {
  float tile[4][TILE][TILE];  // rows 0-15 with columns 0-15 and 16-31, then rows 16-31
};

// Finished sums on their way to bf16. The product of the next block takes a few rows along in each of its steps: the units
// for tiles and for vectors work side by side.
struct Leaving {
  const Sums* sums;
  __mmask32 inside;
  bf16* y;
  long stride, row = 0, rows = 0;
  bool past;  // the caches, for what is too large for them
  bool add;   // to what is there

  WITH_BF16 void start(const Sums& finished, long count, long columns, bf16* to, long to_stride, bool large,
                       bool more = false) {
    add = more;
    past = large && columns >= COLUMNS && (uintptr_t)to % 64 == 0 && to_stride % COLUMNS == 0;
    sums = &finished, y = to, stride = to_stride, row = 0, rows = count;
    inside = columns >= COLUMNS ? ~0u : (1u << columns) - 1;
  }

  WITH_BF16 void some(long count) {
    for (const long end = row + count < rows ? row + count : rows; row < end; row++) {
      const long t = row / TILE * 2, r = row % TILE;
      __m512 a = _mm512_load_ps(sums->tile[t][r]), b = _mm512_load_ps(sums->tile[t + 1][r]);
      if (add) {
        a = _mm512_add_ps(a, widen(y + row * stride, inside));
        b = _mm512_add_ps(b, widen(y + row * stride + PANEL, inside >> PANEL));
      }
      const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
      if (past)
        _mm512_stream_si512((__m512i*)(y + row * stride), both);
      else
        _mm512_mask_storeu_epi16(y + row * stride, inside, both);
    }
  }

  WITH_BF16 void finish() {
    some(rows);
    _mm_sfence();
  }
};

// What passes by the nearest cache (`TILELOADDT1`), so that what it meets again and again stays there: a quarter of a
// block's time (docs/lab-log.md, 2026-11-27).
enum class Passing { NOTHING, ROWS, WEIGHTS };

constexpr long NEAR = 640;  // numbers of each of 32 rows or columns that stay there, and leave room for what passes

#define LOAD_TILE(tile, passes, from, bytes) \
  if constexpr (passes)                      \
    _tile_stream_loadd(tile, from, bytes);   \
  else                                       \
    _tile_loadd(tile, from, bytes)

// Sums over `steps` times 32 neighbours along k. Rows lie `stride` numbers apart, weights as whole tiles one after the
// other. Each step takes some rows of the sums that leave along.
template <int R, Passing passing, class Before>
WITH_TILES inline void multiply(const bf16* rows, long stride, const bf16* left, const bf16* right, long steps,
                                Before& before, Sums& out) {
  const long along = up(before.rows - before.row, steps);
  _tile_zero(0);
  _tile_zero(1);
  if (R == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  constexpr bool rows_pass = passing == Passing::ROWS, weights_pass = passing == Passing::WEIGHTS;
  for (long s = 0; s < steps; s++) {
    LOAD_TILE(4, rows_pass, rows + s * DEEP, stride * sizeof(bf16));
    LOAD_TILE(6, weights_pass, left + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(0, 4, 6);
    LOAD_TILE(7, weights_pass, right + s * TILE_NUMBERS, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (R == 2) {
      LOAD_TILE(5, rows_pass, rows + TILE * stride + s * DEEP, stride * sizeof(bf16));
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    before.some(along);
  }
  _tile_stored(0, out.tile[0], 64);
  _tile_stored(1, out.tile[1], 64);
  if (R == 2) {
    _tile_stored(2, out.tile[2], 64);
    _tile_stored(3, out.tile[3], 64);
  }
}

#undef LOAD_TILE

template <Passing passing, class Before>
WITH_TILES inline void multiply(long rows_of_tiles, const bf16* rows, long stride, const bf16* left, const bf16* right,
                                long steps, Before& before, Sums& out) {
  if (rows_of_tiles == 2) return multiply<2, passing>(rows, stride, left, right, steps, before, out);
  multiply<1, passing>(rows, stride, left, right, steps, before, out);
}

template <class Before>
WITH_TILES inline void multiply(Passing passing, long rows_of_tiles, const bf16* rows, long stride, const bf16* left,
                                const bf16* right, long steps, Before& before, Sums& out) {
  if (passing == Passing::ROWS)
    multiply<Passing::ROWS>(rows_of_tiles, rows, stride, left, right, steps, before, out);
  else if (passing == Passing::WEIGHTS)
    multiply<Passing::WEIGHTS>(rows_of_tiles, rows, stride, left, right, steps, before, out);
  else
    multiply<Passing::NOTHING>(rows_of_tiles, rows, stride, left, right, steps, before, out);
}

}  // namespace
