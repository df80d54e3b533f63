// What a loss needs of rows of logits over a vocabulary: bf16 in memory, sums in fp32, a row always by one thread.

#include <math.h>

#include "lanes.h"

namespace {

WITH_BF16 inline float highest(const bf16* row, long words) {
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (long i = 0; i < words; i += LANES) {
    const __mmask16 held = inside(words - i);
    most = _mm512_mask_max_ps(most, held, most, widen(row + i, held));
  }
  return _mm512_reduce_max_ps(most);
}

inline float wide(bf16 x) {
  union {
    uint32_t bits;
    float value;
  } both = {(uint32_t)x << 16};
  return both.value;
}

}  // namespace

extern "C" {

// Of each row the log-probability of its target, the logarithm of its sum of exponentials, and its entropy.
WITH_BF16 void token_logprobs(const bf16* logits, const int64_t* targets, float* logprobs, float* log_totals,
                              float* entropies, long rows, long words) {
#pragma omp parallel for schedule(static) if (rows * words > SMALL)
  for (long r = 0; r < rows; r++) {
    const bf16* row = logits + r * words;
    const float most = highest(row, words);
    const __m512 top = _mm512_set1_ps(most);
    __m512 total = _mm512_setzero_ps(), gap = _mm512_setzero_ps();
    for (long i = 0; i < words; i += LANES) {
      const __mmask16 held = inside(words - i);
      const __m512 below = _mm512_sub_ps(widen(row + i, held), top);
      const __m512 e = share_of(below);
      total = _mm512_mask_add_ps(total, held, total, e);
      gap = _mm512_mask3_fmadd_ps(e, below, gap, held);
    }
    const float sum = _mm512_reduce_add_ps(total), log_sum = logf(sum);
    log_totals[r] = most + log_sum;
    logprobs[r] = wide(row[targets[r]]) - most - log_sum;
    entropies[r] = log_sum - _mm512_reduce_add_ps(gap) / sum;
  }
}

// Logits become, in their place, the slopes of grad * log-probability: grad * (one-hot - probabilities), times what the
// cap bends them by unless it is 0.
WITH_BF16 void token_slopes(bf16* logits, const int64_t* targets, const float* grad, const float* log_totals, long rows,
                            long words, float cap) {
#pragma omp parallel for schedule(static) if (rows * words > SMALL)
  for (long r = 0; r < rows; r++) {
    bf16* row = logits + r * words;
    const __m512 log_total = _mm512_set1_ps(log_totals[r]), given = _mm512_set1_ps(grad[r]);
    const __m512 bend = _mm512_set1_ps(cap ? 1 / cap : 0), one = _mm512_set1_ps(1.0f);
    bf16* target = row + targets[r];
    const __m512 chosen = _mm512_set1_ps(wide(*target));
    for (long i = 0; i < words; i += LANES) {
      const __mmask16 held = inside(words - i);
      const __m512 x = widen(row + i, held), y = _mm512_mul_ps(x, bend);
      const __m512 slope = _mm512_mul_ps(given, share_of(_mm512_sub_ps(x, log_total)));
      narrow(row + i, _mm512_mul_ps(slope, _mm512_fmsub_ps(y, y, one)), held);
    }
    const __m512 y = _mm512_mul_ps(chosen, bend), share = share_of(_mm512_sub_ps(chosen, log_total));
    narrow(target, _mm512_mul_ps(_mm512_mul_ps(given, _mm512_sub_ps(one, share)), _mm512_fnmadd_ps(y, y, one)), 1);
  }
}

}  // extern "C"
