// Scores of the query heads that share a key head by tiles, for one token: keys as they lie are one side of a product, the
// queries its few columns. A lane is then one key and one query, and no sum runs across lanes.

#pragma once

#include <math.h>
#include <string.h>

#include <algorithm>

#include "attention.h"
#include "tiles.h"

namespace {

constexpr long KEYS = 2 * TILE;  // of a step

inline bool scores_by_tiles(long share, long width) {
  return tiles_allowed && share > 1 && share <= TILE && width % DEEP == 0;
}

// Columns of a product for so many queries: as many as divide a register.
inline long columns_for(long share) {
  long columns = 2;
  while (columns < share) columns *= 2;
  return columns;
}

// Two tiles of sums (0, 1), two of keys (4, 5) and one of queries (6), of which sums and queries are narrow.
WITH_TILES inline void open_narrow_tiles(long columns) {
  TileShapes shapes;
  for (int tile : {0, 1, 6}) shapes.bytes[tile] = columns * sizeof(float);
  __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

// Queries (share, width) to pairs of numbers (width / 2, columns).
inline void lay_queries(const bf16* q, long share, long width, long columns, bf16* laid) {
  memset(laid, 0, width * columns * sizeof(bf16));
  for (long i = 0; i < share; i++)
    for (long p = 0; p < width / 2; p++) memcpy(laid + 2 * (p * columns + i), q + i * width + 2 * p, 2 * sizeof(bf16));
}

// The next keys of a step, or a copy of those that are left, the others 0: what lies behind them may be nobody's.
inline const bf16* keys_of_step(const bf16* keys, long& stride, long left, long width, Room& room) {
  if (left >= KEYS) return keys;
  bf16* copy = room.rows(KEYS * width);
  memset(copy, 0, KEYS * width * sizeof(bf16));
  for (long s = 0; s < left; s++) memcpy(copy + s * width, keys + s * stride, width * sizeof(bf16));
  stride = width;
  return copy;
}

// Products of queries, as they are laid, with 32 keys, to scores (32, columns).
WITH_TILES inline void score_step(const bf16* laid, const bf16* keys, long stride, long width, long columns, float* scores) {
  _tile_zero(0);
  _tile_zero(1);
  for (long d = 0; d < width; d += DEEP) {
    _tile_loadd(4, keys + d, stride * sizeof(bf16));
    _tile_loadd(6, laid + d * columns, columns * sizeof(float));
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, keys + TILE * stride + d, stride * sizeof(bf16));
    _tile_dpbf16ps(1, 5, 6);
  }
  _tile_stored(0, scores, columns * sizeof(float));
  _tile_stored(1, scores + TILE * columns, columns * sizeof(float));
}

// One number of each column out of those of all lanes, by `join`.
template <class Join>
WITH_BF16 inline void join_lanes(__m512 x, long columns, float* joined, const Join& join) {
  alignas(64) float lanes[LANES];
  _mm512_store_ps(lanes, x);
  for (long i = 0; i < columns; i++) joined[i] = lanes[i];
  for (long i = columns; i < LANES; i++) joined[i % columns] = join(joined[i % columns], lanes[i]);
}

// Scores (numbers / columns, columns) to e to the power of what they are above their column's highest. Of each query that
// highest, times the scale, and the sum of the shares go to `ends`.
WITH_BF16 inline void open_columns(float* scores, long numbers, long columns, long share, float scale, float* ends) {
  constexpr long APART = 4;
  __m512 most[APART], total[APART];
  for (long i = 0; i < APART; i++) most[i] = _mm512_set1_ps(-INFINITY), total[i] = _mm512_setzero_ps();
  for (long s = 0; s < numbers; s += APART * LANES)
#pragma GCC unroll 4
    for (long i = 0; i < APART; i++) most[i] = _mm512_max_ps(most[i], _mm512_loadu_ps(scores + s + i * LANES));
  alignas(64) float top[LANES], sums[LANES];
  const __m512 all = _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
  join_lanes(all, columns, top, [](float a, float b) { return a > b ? a : b; });
  for (long i = columns; i < LANES; i++) top[i] = top[i % columns];
  const __m512 by = _mm512_set1_ps(scale * 1.44269504f), highest = _mm512_mul_ps(_mm512_load_ps(top), by);
  for (long s = 0; s < numbers; s += APART * LANES)
#pragma GCC unroll 4
    for (long i = 0; i < APART; i++) {
      const __m512 own = power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(scores + s + i * LANES), by, highest));
      total[i] = _mm512_add_ps(total[i], own);
      _mm512_storeu_ps(scores + s + i * LANES, own);
    }
  join_lanes(_mm512_add_ps(_mm512_add_ps(total[0], total[1]), _mm512_add_ps(total[2], total[3])), columns, sums,
             [](float a, float b) { return a + b; });
  for (long i = 0; i < share; i++) ends[2 * i] = top[i] * scale, ends[2 * i + 1] = sums[i];
}

// Shares of `count` tokens and `share` queries, (tokens, columns); see `open_columns` for what goes to `ends`. Values are
// asked for meanwhile.
WITH_TILES inline Shares shares_by_tiles(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row,
                                         long count, long share, long width, long depth, float scale, float cap, float* ends,
                                         Room& room) {
  const long columns = columns_for(share), padded = (count + KEYS - 1) / KEYS * KEYS;
  bf16* laid = room.queries(width * columns);
  float* scores = room.scores(padded * columns);
  lay_queries(q, share, width, columns, laid);
  open_narrow_tiles(columns);
  for (long s = 0; s < count; s += KEYS) {
    fetch(values + s * value_row, value_row, std::min(count - s, KEYS), depth);
    long stride = key_row;
    const bf16* own = keys_of_step(keys + s * key_row, stride, count - s, width, room);
    __asm__ volatile("" ::: "memory");  // what tiles read has been written
    score_step(laid, own, stride, width, columns, scores + s * columns);
  }
  close_tiles();
  __asm__ volatile("" ::: "memory");
  for (long i = 0; i < count * columns && cap > 0; i++) scores[i] = cap * tanhf(scores[i] * scale / cap);
  for (long i = count * columns; i < padded * columns; i++) scores[i] = -INFINITY;
  open_columns(scores, padded * columns, columns, share, cap > 0 ? 1.0f : scale, ends);
  return {scores, 1, columns};
}

}  // namespace
