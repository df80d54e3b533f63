// Products by AMX's tiles of bf16 with panels that are packed, or made as they are asked for.

#pragma once

#include <omp.h>
#include <string.h>

#include "matrix.h"
#include "tiled.h"

namespace {

constexpr long GROUP = 256, TASKS_A_THREAD = 4;

// See `multiply_rows`. panels(j): the two panels of 32 columns from j on, one behind the other. Last rows that fill no tile get
// room, unless there is memory behind them.
template <class Panels>
WITH_TILES void by_panels(const Panels& panels, const bf16* x, long x_stride, const Matrix& w, bf16* y, long y_stride, long m,
                          bf16* scratch, bool filled) {
  const long n = w.n, k = w.k;
  const long rest = m % TILE && !filled ? m % BLOCK_ROWS : 0, whole = m - rest;
  if (rest) {
#pragma omp for schedule(static)
    for (long i = 0; i < rest; i++) memcpy(scratch + i * k, x + (whole + i) * x_stride, k * sizeof(bf16));
  }
  const long even = up(n, TASKS_A_THREAD * omp_get_max_threads() * COLUMNS) * COLUMNS;
  const long group = even < GROUP ? even : GROUP;
  const long chunks = up(m * k, CACHED), chunk = up(up(m, chunks), BLOCK_ROWS) * BLOCK_ROWS;
  const Passing passing = k <= NEAR && m > BLOCK_ROWS ? Passing::ROWS : Passing::NOTHING;
  open_tiles();
  Sums sums[2];  // one is filled while the other leaves
  Leaving leaving;
  long turn = 0;
#pragma omp for schedule(dynamic, 1) collapse(2) nowait
  for (long c = 0; c < m; c += chunk)
    for (long g = 0; g < n; g += group)
      for (long j = g; j < n && j < g + group; j += COLUMNS) {
        const bf16* own = panels(j);
        for (long i = c; i < m && i < c + chunk; i += BLOCK_ROWS) {
          const bool copied = i >= whole;
          const long most = (copied ? m : whole) - i, count = most < BLOCK_ROWS ? most : BLOCK_ROWS;
          const long stride = copied ? k : x_stride;
          Sums& held = sums[turn++ % 2];
          multiply(passing, up(count, TILE), copied ? scratch : x + i * x_stride, stride, own, own + k * PANEL, k / DEEP, leaving,
                   held);
          leaving.start(held, count, n - j, y + i * y_stride + j, y_stride, m * n > 4 * CACHED);
        }
      }
  leaving.finish();
  close_tiles();
}

}  // namespace
