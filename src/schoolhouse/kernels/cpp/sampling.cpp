// From rows of bf16 logits to sums of their weights, block by block of the vocabulary, without a copy of the row.

#include "lanes.h"

namespace {

constexpr long BLOCK = 128;  // words

// Sixteen logits, those beyond the row as low as can be.
WITH_BF16 inline __m512 logits_at(const bf16* x, long left) {
  const __mmask16 held = inside(left);
  return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), held, widen(x, held));
}

}  // namespace

extern "C" {

// Of each row of logits (rows, words): its highest one, the first place of that, and for each block of 128 words the sum of
// e^((logit - highest) * slope). A row with a logit that is no number has sums that are none.
WITH_BF16 void weigh_words(const bf16* logits, long stride, const float* slopes, float* tops, int64_t* best, float* sums,
                           long rows, long words) {
  const long blocks = (words + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(dynamic, 1)
  for (long r = 0; r < rows; r++) {
    const bf16* row = logits + r * stride;
    __m512 most = _mm512_set1_ps(-__builtin_inff());
    for (long i = 0; i < words; i += LANES) most = _mm512_max_ps(logits_at(row + i, words - i), most);
    tops[r] = _mm512_reduce_max_ps(most);
    const __m512 top = _mm512_set1_ps(tops[r]), slope = _mm512_set1_ps(slopes[r]), least = _mm512_set1_ps(-87.0f);
    best[r] = -1;
    for (long b = 0; b < blocks; b++) {
      __m512 sum = _mm512_setzero_ps();
      for (long i = b * BLOCK; i < words && i < (b + 1) * BLOCK; i += LANES) {
        const __m512 x = logits_at(row + i, words - i), far = _mm512_mul_ps(_mm512_sub_ps(x, top), slope);
        const __mmask16 counts = _mm512_cmp_ps_mask(far, least, _CMP_NLT_UQ);  // true for what is no number
        sum = _mm512_mask_add_ps(sum, counts, sum, exponential(far));
        if (best[r] < 0) {
          const __mmask16 highest = _mm512_cmp_ps_mask(x, top, _CMP_EQ_OQ);
          if (highest) best[r] = i + __builtin_ctz(highest);
        }
      }
      sums[r * blocks + b] = _mm512_reduce_add_ps(sum);
    }
  }
}

}  // extern "C"
