// Attention of one new token in each running text, over keys and values in bf16 where the cache holds them.
//
// A text reads its own tokens and no more, once: the query heads that share a key head take turns on a block that is in
// the first cache. What comes next is asked for early: a text's values while its keys are read, the next one's keys
// while its values are. Sums and the softmax are in fp32.

#include <math.h>
#include <omp.h>
#include <string.h>

#include "attention.h"
#include "attention_tiles.h"

namespace {

constexpr long PAIRS = 32, CHUNK = 64, BLOCK = 16;
constexpr long TOGETHER = 4;  // queries whose sums are held at once

// The sums of 16 registers, one a lane.
WITH_BF16 inline __m512 sums_of(const __m512* x) {
  __m512 four[4];
  for (int i = 0; i < 4; i++) {
    const __m512* y = x + 4 * i;
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(y[0], y[1]), _mm512_unpackhi_ps(y[0], y[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(y[2], y[3]), _mm512_unpackhi_ps(y[2], y[3]));
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  }
  __m512 two[2];
  for (int i = 0; i < 2; i++)
    two[i] = _mm512_add_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                           _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(two[0], two[1], 0x88), _mm512_shuffle_f32x4(two[0], two[1], 0xdd));
}

// Adds the values of a block of tokens, each times its shares, to the sums of R queries, 32 * W numbers of each: of every 32
// those with even places, then those with odd ones, as they are widened without a shuffle. last: which of the last 32 there
// are.
template <int R, int W>
WITH_BF16 void add_some(float* sum, long deep, const Shares& shares, const bf16* values, long stride, long tokens,
                        __mmask32 last) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  __m512 held[R][2 * W];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int p = 0; p < 2 * W; p++) held[i][p] = _mm512_loadu_ps(sum + i * deep + p * LANES);
  for (long s = 0; s < tokens; s++) {
    __m512 value[2 * W];
#pragma GCC unroll 2
    for (int w = 0; w < W; w++) {
      const __m512i pairs = _mm512_maskz_loadu_epi16(w + 1 < W ? ~0u : last, values + s * stride + w * PAIRS);
      value[2 * w] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
      value[2 * w + 1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) {
      const __m512 share = _mm512_set1_ps(shares.at[i * shares.apart + s * shares.step]);
#pragma GCC unroll 4
      for (int p = 0; p < 2 * W; p++) held[i][p] = _mm512_fmadd_ps(share, value[p], held[i][p]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int p = 0; p < 2 * W; p++) _mm512_storeu_ps(sum + i * deep + p * LANES, held[i][p]);
}

// The same for up to R of the queries that are left, and up to 64 numbers of each.
template <int R>
void add_values(long queries, float* sum, long deep, const Shares& shares, const bf16* values, long stride, long tokens,
                long depth) {
  if (queries < R) return add_values<R - 1>(queries, sum, deep, shares, values, stride, tokens, depth);
  const __mmask32 last = depth % PAIRS ? 0xffff : ~0u;
  if (depth > PAIRS) add_some<R, 2>(sum, deep, shares, values, stride, tokens, last);
  else add_some<R, 1>(sum, deep, shares, values, stride, tokens, last);
}
template <>
void add_values<0>(long, float*, long, const Shares&, const bf16*, long, long, long) {}

// Products of one query with 16 keys, of which the first `count` are there.
WITH_BF16 __m512 scores_of(const bf16* q, const bf16* keys, long stride, long width, long count) {
  __m512 sum[LANES];
#pragma GCC unroll 16
  for (long s = 0; s < LANES; s++) sum[s] = _mm512_setzero_ps();
  for (long d = 0; d < width; d += PAIRS) {
    const __mmask32 inside = width - d >= PAIRS ? ~0u : (1u << (width - d)) - 1;
    const __m512bh mine = (__m512bh)_mm512_maskz_loadu_epi16(inside, q + d);
    if (count == LANES && inside == ~0u) {
#pragma GCC unroll 16
      for (long s = 0; s < LANES; s++)
        sum[s] = _mm512_dpbf16_ps(sum[s], mine, (__m512bh)_mm512_loadu_si512(keys + s * stride + d));
    } else {
#pragma GCC unroll 16
      for (long s = 0; s < LANES; s++) {
        const bf16* key = keys + (s < count ? s : 0) * stride + d;
        sum[s] = _mm512_dpbf16_ps(sum[s], mine, (__m512bh)_mm512_maskz_loadu_epi16(inside, key));
      }
    }
  }
  return sums_of(sum);
}

// Scores of `share` queries, each `padded` numbers further; values are asked for meanwhile.
WITH_BF16 void score_keys(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                          float* scores, long padded, long share, long width, long depth, float scale, float cap) {
  for (long s = 0; s < count; s += LANES) {
    const long left = count - s < LANES ? count - s : LANES;
    fetch(values + s * value_row, value_row, left, depth);
    for (long i = 0; i < share; i++) {
      const __m512 found = scores_of(q + i * width, keys + s * key_row, key_row, width, left);
      _mm512_storeu_ps(scores + i * padded + s, _mm512_mul_ps(found, _mm512_set1_ps(scale)));
    }
  }
  for (long i = 0; i < share && cap > 0; i++)
    for (long s = 0; s < count; s++) scores[i * padded + s] = cap * tanhf(scores[i * padded + s] / cap);
}

// Shares of `count` tokens, and of each query the highest score and the sum of its shares.
WITH_BF16 Shares shares_of(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                           long share, long width, long depth, float scale, float cap, float* ends, Room& room) {
  if (scores_by_tiles(share, width))
    return shares_by_tiles(q, keys, key_row, values, value_row, count, share, width, depth, scale, cap, ends, room);
  const long padded = (count + LANES - 1) / LANES * LANES;
  float* scores = room.scores(share * padded);
  score_keys(q, keys, key_row, values, value_row, count, scores, padded, share, width, depth, scale, cap);
  for (long i = 0; i < share; i++) {
    const Opened opened = open_shares(scores + i * padded, count);
    ends[2 * i] = opened.highest, ends[2 * i + 1] = opened.total;
  }
  return {scores, padded, 1};
}

// Even and odd ones of 32 numbers to their order.
WITH_BF16 inline void in_order(const float* sums, __m512& first, __m512& second) {
  const __m512 even = _mm512_loadu_ps(sums), odd = _mm512_loadu_ps(sums + LANES);
  in_turns(_mm512_unpacklo_ps(even, odd), _mm512_unpackhi_ps(even, odd), first, second);
}

// Sums of values times shares, 16 numbers of a query at once to `take(i, d, sums)`; keys that come next are asked for
// meanwhile.
template <class Take>
WITH_BF16 void sum_values(const Shares& shares, const bf16* values, long value_row, long count, const bf16* following,
                          long key_row, long share, long width, long depth, Room& room, const Take& take) {
  const long deep = (depth + PAIRS - 1) / PAIRS * PAIRS;
  float* sums = room.sums(share * deep);
  memset(sums, 0, share * deep * sizeof(float));
  for (long s = 0; s < count; s += BLOCK) {
    const long tokens = count - s < BLOCK ? count - s : BLOCK;
    if (following) fetch(following + s * key_row, key_row, tokens, width);
    for (long d = 0; d < depth; d += CHUNK)
      for (long i = 0; i < share; i += TOGETHER)
        add_values<TOGETHER>(share - i, sums + i * deep + d, deep,
                             {shares.at + i * shares.apart + s * shares.step, shares.apart, shares.step},
                             values + s * value_row + d, value_row, tokens, depth - d < CHUNK ? depth - d : CHUNK);
  }
  for (long i = 0; i < share; i++)
    for (long d = 0; d < depth; d += PAIRS) {
      __m512 first, second;
      in_order(sums + i * deep + d, first, second);
      take(i, d, first);
      if (d + LANES < depth) take(i, d + LANES, second);
    }
}

}  // namespace

WITH_BF16 void attend_stretch(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                              const bf16* following, float* out, long share, long width, long depth, float scale, float cap,
                              Room& room) {
  const Shares shares = shares_of(q, keys, key_row, values, value_row, count, share, width, depth, scale, cap,
                                  out + share * depth, room);
  sum_values(shares, values, value_row, count, following, key_row, share, width, depth, room,
             [=](long i, long d, __m512 x) WITH_BF16 { _mm512_storeu_ps(out + i * depth + d, x); });
}

WITH_BF16 void join_stretches(const float* parts, long count, long share, long depth, bf16* out) {
  const long size = stretch_size(share, depth);
  for (long i = 0; i < share; i++) {
    const float* ends = parts + share * depth + 2 * i;
    float highest = ends[0], total = 0;
    for (long p = 1; p < count; p++) highest = fmaxf(highest, ends[p * size]);
    for (long p = 0; p < count; p++) total += expf(ends[p * size] - highest) * ends[p * size + 1];
    for (long d = 0; d < depth; d += LANES) {
      __m512 sum = _mm512_setzero_ps();
      for (long p = 0; p < count; p++)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(expf(ends[p * size] - highest) / total),
                              _mm512_loadu_ps(parts + p * size + i * depth + d), sum);
      narrow(out + i * depth + d, sum);
    }
  }
}

WITH_BF16 void attend_rows(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                           const bf16* following, bf16* out, long share, long width, long depth, float scale, float cap,
                           Room& room) {
  if (count > STRETCH) {
    const long all = stretches(count), size = stretch_size(share, depth);
    float* parts = room.stretches(all * size);
    for (long p = 0; p < all; p++) {
      const long from = p * STRETCH, left = count - from < STRETCH ? count - from : STRETCH;
      const bf16 *own = keys + from * key_row, *next = p + 1 < all ? own + STRETCH * key_row : following;
      attend_stretch(q, own, key_row, values + from * value_row, value_row, left, next, parts + p * size, share, width,
                     depth, scale, cap, room);
    }
    return join_stretches(parts, all, share, depth, out);
  }
  float* ends = room.stretches(2 * share);
  const Shares shares =
      shares_of(q, keys, key_row, values, value_row, count, share, width, depth, scale, cap, ends, room);
  sum_values(shares, values, value_row, count, following, key_row, share, width, depth, room,
             [=](long i, long d, __m512 x) WITH_BF16 {
               narrow(out + i * depth + d, _mm512_mul_ps(x, _mm512_set1_ps(1.0f / ends[2 * i + 1])));
             });
}

extern "C" {

// q (texts, kv_heads * share, width) to out (texts, kv_heads * share, depth). Keys lie at key + text * key_text +
// head * key_head + token * key_row, values likewise; widths are multiples of 16. A text sees tokens from `first` to before
// `last`, of each text its own. cap: 0 for none.
WITH_BF16 void attend_one(const bf16* q, const bf16* key, long key_text, long key_head, long key_row, const bf16* value,
                          long value_text, long value_head, long value_row, const int64_t* firsts, const int64_t* lasts,
                          bf16* out, long texts, long kv_heads, long share, long width, long depth, float scale,
                          float cap) {
  const long even = texts * kv_heads / (TURNS_A_THREAD * omp_get_max_threads()), turn = even < 1 ? 1 : even;
#pragma omp parallel
  {
    Room room;
#pragma omp for schedule(dynamic, turn) collapse(2)
    for (long b = 0; b < texts; b++)
      for (long h = 0; h < kv_heads; h++) {
        const bf16* keys = key + b * key_text + h * key_head + firsts[b] * key_row;
        const bf16* values = value + b * value_text + h * value_head + firsts[b] * value_row;
        const long row = (b * kv_heads + h) * share;
        const bf16* following = h + 1 < kv_heads  ? keys + key_head
                                : b + 1 < texts ? key + (b + 1) * key_text + firsts[b + 1] * key_row
                                                : nullptr;
        attend_rows(q + row * width, keys, key_row, values, value_row, lasts[b] - firsts[b], following,
                    out + row * depth, share, width, depth, scale, cap, room);
      }
  }
}

}  // extern "C"
