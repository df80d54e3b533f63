// Attention of the query heads that share a key head, for one token.

#pragma once

#include <math.h>
#include <stdlib.h>

#include "lanes.h"

constexpr long TURNS_A_THREAD = 8;  // what is asked for early is then read by the thread that asked
constexpr long AHEAD = 64;          // rows between what is read and what is asked for (docs/lab-log.md, 2026-11-27)

// Memory for as many things as asked for, of which nothing is kept when it grows.
template <class Thing>
class Held {
 public:
  ~Held() { free(held_); }
  Thing* operator()(long count) {
    if (count > most_) {
      free(held_);
      most_ = (2 * count + 63) / 64 * 64;
      held_ = (Thing*)aligned_alloc(64, most_ * sizeof(Thing));
    }
    return held_;
  }

 private:
  Thing* held_ = nullptr;
  long most_ = 0;
};

// A part of a query as whole numbers of 16 bits, each factor times which is the number.
struct Part {
  float factor;
  int highs, lows;  // -128 times the sums of their high and low bytes, for codes are taken as c + 128
};

// Rows that are read one after the other, and those that are read then; lengths in bytes.
struct Road {
  const void* rows;
  long row, width, count;
  const void* then;  // null: nothing
  long then_row, then_width;

  // Asks for what comes so far behind these rows. A few at a time keep memory busy; many at once would wait for one another.
  void ask(long from, long to) const {
    for (long s = from + AHEAD; s < to + AHEAD; s++) {
      const bool own = s < count;
      const char* place = own ? (const char*)rows + s * row : (const char*)then + (s - count) * then_row;
      if (!own && !then) return;
      for (long d = 0; d < (own ? width : then_width); d += 64) __builtin_prefetch(place + d, 0, 2);
    }
  }
};

// What a thread needs for it.
struct Room {
  Held<float> scores, sums, factors, stretches;
  Held<bf16> queries, rows;
  Held<int8_t> digits;
  Held<Part> parts;
};

namespace {

constexpr long LINE_NUMBERS = 32;  // of 16 bits, that memory hands over at once

// Asks for rows of 16-bit numbers before they are needed.
inline void fetch(const bf16* rows, long stride, long count, long width) {
  for (long s = 0; s < count; s++)
    for (long d = 0; d < width; d += LINE_NUMBERS) __builtin_prefetch(rows + s * stride + d, 0, 2);
}

// Where the share of query i in token s lies: i * apart + s * step numbers behind.
struct Shares {
  const float* at;
  long apart, step;
};

// Scores to e to the power of what they are above the highest; returns that and their sum. The room behind the last score is
// filled up to 16.
struct Opened {
  float highest, total;
};

WITH_BF16 Opened open_shares(float* scores, long count) {
  __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
  for (long s = 0; s < count; s += LANES) {
    const __mmask16 inside = count - s >= LANES ? 0xffff : (1u << (count - s)) - 1;
    most = _mm512_mask_max_ps(most, inside, most, _mm512_loadu_ps(scores + s));
  }
  const float highest = _mm512_reduce_max_ps(most);
  for (long s = 0; s < count; s += LANES) {
    const __mmask16 inside = count - s >= LANES ? 0xffff : (1u << (count - s)) - 1;
    const __m512 above = _mm512_sub_ps(_mm512_loadu_ps(scores + s), _mm512_set1_ps(highest));
    const __m512 e = _mm512_maskz_mov_ps(inside, share_of(above));
    total = _mm512_add_ps(total, e);
    _mm512_storeu_ps(scores + s, e);
  }
  return {highest, _mm512_reduce_add_ps(total)};
}

// Scores to shares that add to one.
WITH_BF16 void softmax(float* scores, long count) {
  const __m512 scale = _mm512_set1_ps(1.0f / open_shares(scores, count).total);
  for (long s = 0; s < count; s += LANES)
    _mm512_storeu_ps(scores + s, _mm512_mul_ps(_mm512_loadu_ps(scores + s), scale));
}

}  // namespace

// q (share, width) over `count` keys and values, rows so far apart, to out (share, depth). following: keys that come next,
// to be asked for, or null. cap: 0 for none.
void attend_rows(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                 const bf16* following, bf16* out, long share, long width, long depth, float scale, float cap, Room& room);

// A long text is looked at in stretches of so many tokens, each for itself, whose sums are joined: threads can share one
// text, and it has the same bits whether they do or not.
constexpr long STRETCH = 1024;
inline long stretches(long count) { return (count + STRETCH - 1) / STRETCH; }
inline long stretch_size(long share, long depth) { return share * (2 + depth); }

// One stretch of what `attend_rows` looks at: sums, and of each query the highest score and the sum of shares, so far
// `stretch_size` numbers.
void attend_stretch(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                    const bf16* following, float* out, long share, long width, long depth, float scale, float cap,
                    Room& room);

// All stretches of a text, one behind the other, to out (share, depth).
void join_stretches(const float* parts, long count, long share, long depth, bf16* out);

// Rows of int8 codes, so many bytes apart, each row times its scale: of the numbers before the split by one, of those behind
// it by another, if there are any.
struct Codes {
  const int8_t* codes;
  long row;
  const bf16 *scales, *behind;
};

// The same over codes. split: where the second scale begins; `width` if there is one only. The values have one.
void attend_codes(const bf16* q, const Codes& keys, const Codes& values, long count, const int8_t* following, bf16* out,
                  long share, long width, long split, long depth, float scale, float cap, Room& room);

// A row as codes and its scale: the nearest whole multiples, the largest number 127.
void encode_row(const bf16* x, long width, int8_t* codes, bf16* scale);
