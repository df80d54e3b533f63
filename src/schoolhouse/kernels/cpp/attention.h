// Attention of the query heads that share a key head, for one token.

#pragma once

#include <stdlib.h>

#include "lanes.h"

constexpr long TURNS_A_THREAD = 8;  // what is asked for early is then read by the thread that asked

// What a thread needs for it; grows as it has to.
class Room {
 public:
  ~Room() { free(scores_), free(sums_); }
  float* scores(long count) { return enough(scores_, most_scores_, count); }
  float* sums(long count) { return enough(sums_, most_sums_, count); }

 private:
  static float* enough(float*& held, long& most, long count) {
    if (count > most) {
      free(held);
      most = (2 * count + 15) / 16 * 16;
      held = (float*)aligned_alloc(64, most * sizeof(float));
    }
    return held;
  }

  float *scores_ = nullptr, *sums_ = nullptr;
  long most_scores_ = 0, most_sums_ = 0;
};

// q (share, width) over `count` keys and values, rows so far apart, to out (share, depth). following: keys that come next, to
// be asked for, or null. cap: 0 for none.
void attend_rows(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                 const bf16* following, bf16* out, long share, long width, long depth, float scale, float cap, Room& room);
