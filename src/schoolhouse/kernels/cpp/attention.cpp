// Attention of one new token in each running text, over keys and values in bf16 where the cache holds them.
//
// A text reads its own tokens and no more, once: the query heads that share a key head take turns on a block that is in
// the first cache. Sums and the softmax are in fp32.

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef uint16_t bf16;

#define WITH_BF16 __attribute__((target("avx512f,avx512bf16,avx512bw,avx512vl,avx512dq")))

namespace {

constexpr long LANES = 16, PAIRS = 32, CHUNK = 64, BLOCK = 64;

WITH_BF16 inline __m512 widen(const bf16* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

// The sums of 16 registers, one a lane.
WITH_BF16 inline __m512 sums_of(const __m512* x) {
  __m512 four[4];
  for (int i = 0; i < 4; i++) {
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i], x[4 * i + 1]), _mm512_unpackhi_ps(x[4 * i], x[4 * i + 1]));
    const __m512 b =
        _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i + 2], x[4 * i + 3]), _mm512_unpackhi_ps(x[4 * i + 2], x[4 * i + 3]));
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  }
  __m512 two[2];
  for (int i = 0; i < 2; i++)
    two[i] = _mm512_add_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                           _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(two[0], two[1], 0x88), _mm512_shuffle_f32x4(two[0], two[1], 0xdd));
}

// e^x for x <= 0, to about 2e-7 of itself; below -87 it is 0.
WITH_BF16 inline __m512 exponential(__m512 x) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 720);
  const float terms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float term : terms) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(term));
  return _mm512_mask_mov_ps(_mm512_scalef_ps(y, n), tiny, _mm512_setzero_ps());
}

// Products of one query with 16 keys, of which the first `count` are there.
WITH_BF16 inline __m512 scores_of(const bf16* q, const bf16* keys, long stride, long width, long count) {
  __m512 sum[LANES];
  for (long s = 0; s < LANES; s++) {
    sum[s] = _mm512_setzero_ps();
    const bf16* key = keys + (s < count ? s : 0) * stride;
    for (long d = 0; d < width; d += PAIRS) {
      const __mmask32 inside = width - d >= PAIRS ? ~0u : (1u << (width - d)) - 1;
      sum[s] = _mm512_dpbf16_ps(sum[s], (__m512bh)_mm512_maskz_loadu_epi16(inside, q + d),
                                (__m512bh)_mm512_maskz_loadu_epi16(inside, key + d));
    }
  }
  return sums_of(sum);
}

// Scores to shares that add to one. The room behind the last score is filled up to 16.
WITH_BF16 void softmax(float* scores, long count) {
  __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
  for (long s = 0; s < count; s += LANES) {
    const __mmask16 inside = count - s >= LANES ? 0xffff : (1u << (count - s)) - 1;
    most = _mm512_mask_max_ps(most, inside, most, _mm512_loadu_ps(scores + s));
  }
  const __m512 highest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  for (long s = 0; s < count; s += LANES) {
    const __mmask16 inside = count - s >= LANES ? 0xffff : (1u << (count - s)) - 1;
    const __m512 e = _mm512_maskz_mov_ps(inside, exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + s), highest)));
    total = _mm512_add_ps(total, e);
    _mm512_storeu_ps(scores + s, e);
  }
  const __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (long s = 0; s < count; s += LANES) _mm512_storeu_ps(scores + s, _mm512_mul_ps(_mm512_loadu_ps(scores + s), scale));
}

// Adds the values of a block of tokens, each times its share, to sums of up to 64 numbers.
WITH_BF16 void add_values(float* sum, const float* shares, const bf16* values, long stride, long tokens, long width) {
  __m512 held[CHUNK / LANES];
  const long parts = width / LANES;
  for (long p = 0; p < parts; p++) held[p] = _mm512_loadu_ps(sum + p * LANES);
  if (parts == CHUNK / LANES)
    for (long s = 0; s < tokens; s++) {
      const __m512 share = _mm512_set1_ps(shares[s]);
      for (long p = 0; p < CHUNK / LANES; p++)
        held[p] = _mm512_fmadd_ps(share, widen(values + s * stride + p * LANES), held[p]);
    }
  else
    for (long s = 0; s < tokens; s++)
      for (long p = 0; p < parts; p++)
        held[p] = _mm512_fmadd_ps(_mm512_set1_ps(shares[s]), widen(values + s * stride + p * LANES), held[p]);
  for (long p = 0; p < parts; p++) _mm512_storeu_ps(sum + p * LANES, held[p]);
}

}  // namespace

extern "C" {

// q (texts, kv_heads * share, width) to out (texts, kv_heads * share, depth). Keys lie at key + text * text_stride + head *
// head_stride + token * key_row, values likewise; widths are multiples of 16. A text sees tokens from `first` to before
// `last`, of each text its own. cap: 0 for none.
WITH_BF16 void attend_one(const bf16* q, const bf16* key, long key_text, long key_head, long key_row, const bf16* value,
                          long value_text, long value_head, long value_row, const int64_t* firsts, const int64_t* lasts,
                          bf16* out, long texts, long kv_heads, long share, long width, long depth, float scale,
                          float cap) {
#pragma omp parallel
  {
    long room = 0;
    float *scores = nullptr, *sums = (float*)aligned_alloc(64, share * depth * sizeof(float));
#pragma omp for schedule(dynamic, 4) collapse(2)
    for (long b = 0; b < texts; b++)
      for (long h = 0; h < kv_heads; h++) {
        const long count = lasts[b] - firsts[b], padded = (count + LANES - 1) / LANES * LANES;
        if (padded > room) {
          free(scores);
          room = 2 * padded;
          scores = (float*)aligned_alloc(64, share * room * sizeof(float));
        }
        const bf16* keys = key + b * key_text + h * key_head + firsts[b] * key_row;
        const bf16* values = value + b * value_text + h * value_head + firsts[b] * value_row;
        const long row = (b * kv_heads + h) * share;
        for (long s = 0; s < count; s += LANES)
          for (long i = 0; i < share; i++) {
            __m512 found = scores_of(q + (row + i) * width, keys + s * key_row, key_row, width, count - s);
            found = _mm512_mul_ps(found, _mm512_set1_ps(scale));
            _mm512_storeu_ps(scores + i * padded + s, found);
          }
        for (long i = 0; i < share; i++) {
          if (cap > 0)
            for (long s = 0; s < count; s++) scores[i * padded + s] = cap * tanhf(scores[i * padded + s] / cap);
          softmax(scores + i * padded, count);
        }
        for (long i = 0; i < share * depth; i++) sums[i] = 0;
        for (long s = 0; s < count; s += BLOCK)
          for (long d = 0; d < depth; d += CHUNK)
            for (long i = 0; i < share; i++)
              add_values(sums + i * depth + d, scores + i * padded + s, values + s * value_row + d, value_row,
                         count - s < BLOCK ? count - s : BLOCK, depth - d < CHUNK ? depth - d : CHUNK);
        for (long i = 0; i < share * depth; i += LANES)
          _mm256_storeu_si256((__m256i*)(out + row * depth + i), (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(sums + i)));
      }
    free(scores);
    free(sums);
  }
}

}  // extern "C"
