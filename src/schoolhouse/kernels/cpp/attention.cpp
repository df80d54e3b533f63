// Attention of one new token in each running text, over keys and values in bf16 where the cache holds them.
//
// A text reads its own tokens and no more, once: the query heads that share a key head take turns on a block that is in
// the first cache. What comes next is asked for early: a text's values while its keys are read, the next one's keys
// while its values are. Sums and the softmax are in fp32.

#include <math.h>
#include <omp.h>

#include "attention.h"

namespace {

constexpr long PAIRS = 32, CHUNK = 64, BLOCK = 64;
constexpr long LINE = 32;  // numbers that memory hands over at once

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

// Asks for rows of 16-bit numbers before they are needed.
inline void fetch(const bf16* rows, long stride, long count, long width) {
  for (long s = 0; s < count; s++)
    for (long d = 0; d < width; d += LINE) __builtin_prefetch(rows + s * stride + d, 0, 2);
}

// Adds the values of a block of tokens, each times its shares, to the sums of R queries, P registers of each.
template <int R, int P>
WITH_BF16 void add_some(float* sum, long depth, const float* shares, long padded, const bf16* values, long stride,
                        long tokens) {
  __m512 held[R][P];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) held[i][p] = _mm512_loadu_ps(sum + i * depth + p * LANES);
  for (long s = 0; s < tokens; s++) {
    __m512 value[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) value[p] = widen(values + s * stride + p * LANES);
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) {
      const __m512 share = _mm512_set1_ps(shares[i * padded + s]);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) held[i][p] = _mm512_fmadd_ps(share, value[p], held[i][p]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) _mm512_storeu_ps(sum + i * depth + p * LANES, held[i][p]);
}

template <int R>
void add_parts(float* sum, long depth, const float* shares, long padded, const bf16* values, long stride, long tokens,
               long parts) {
  if (parts == CHUNK / LANES) return add_some<R, CHUNK / LANES>(sum, depth, shares, padded, values, stride, tokens);
  for (long p = 0; p < parts; p++)
    add_some<R, 1>(sum + p * LANES, depth, shares, padded, values + p * LANES, stride, tokens);
}

// The same for up to 4 of the queries that are left, and up to 64 numbers of each.
void add_values(long queries, float* sum, long depth, const float* shares, long padded, const bf16* values, long stride,
                long tokens, long parts) {
  switch (queries) {
    case 1: return add_parts<1>(sum, depth, shares, padded, values, stride, tokens, parts);
    case 2: return add_parts<2>(sum, depth, shares, padded, values, stride, tokens, parts);
    case 3: return add_parts<3>(sum, depth, shares, padded, values, stride, tokens, parts);
    default: return add_parts<4>(sum, depth, shares, padded, values, stride, tokens, parts);
  }
}

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

// Asks for the first keys of what is looked at next.
inline void fetch_keys(const bf16* keys, long stride, long from, long tokens, long width) {
  if (keys) fetch(keys + from * stride, stride, tokens, width);
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

// Sums of values times shares; keys that come next are asked for meanwhile.
void sum_values(const float* shares, long padded, const bf16* values, long value_row, long count, const bf16* following,
                long key_row, float* sums, long share, long width, long depth) {
  for (long i = 0; i < share * depth; i++) sums[i] = 0;
  for (long s = 0; s < count; s += BLOCK) {
    const long tokens = count - s < BLOCK ? count - s : BLOCK;
    fetch_keys(following, key_row, s, tokens, width);
    for (long d = 0; d < depth; d += CHUNK) {
      const long parts = (depth - d < CHUNK ? depth - d : CHUNK) / LANES;
      for (long i = 0; i < share; i += 4)
        add_values(share - i, sums + i * depth + d, depth, shares + i * padded + s, padded, values + s * value_row + d,
                   value_row, tokens, parts);
    }
  }
}

}  // namespace

void attend_stretch(const bf16* q, const bf16* keys, long key_row, const bf16* values, long value_row, long count,
                    const bf16* following, float* out, long share, long width, long depth, float scale, float cap,
                    Room& room) {
  const long padded = (count + LANES - 1) / LANES * LANES;
  float* scores = room.scores(share * padded);
  score_keys(q, keys, key_row, values, value_row, count, scores, padded, share, width, depth, scale, cap);
  for (long i = 0; i < share; i++) {
    const Opened opened = open_shares(scores + i * padded, count);
    out[share * depth + 2 * i] = opened.highest, out[share * depth + 2 * i + 1] = opened.total;
  }
  sum_values(scores, padded, values, value_row, count, following, key_row, out, share, width, depth);
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
  const long padded = (count + LANES - 1) / LANES * LANES;
  float *scores = room.scores(share * padded), *sums = room.sums(share * depth);
  score_keys(q, keys, key_row, values, value_row, count, scores, padded, share, width, depth, scale, cap);
  for (long i = 0; i < share; i++) softmax(scores + i * padded, count);
  sum_values(scores, padded, values, value_row, count, following, key_row, sums, share, width, depth);
  for (long i = 0; i < share * depth; i += LANES)
    _mm256_storeu_si256((__m256i*)(out + i), (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(sums + i)));
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
