// A step of AdamW in one pass over memory, and a gradient's sum of squares.

#include "lanes.h"

namespace {

constexpr long BLOCK = 1 << 14;  // numbers whose squares are one sum

}  // namespace

extern "C" {

// The sum of squares of each block of 16,384 numbers: the caller adds them in their order, so that the sum does not
// depend on the number of threads.
WITH_BF16 void squares(const bf16* x, double* sums, long count) {
  const long blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (long b = 0; b < blocks; b++) {
    const long end = (b + 1) * BLOCK < count ? (b + 1) * BLOCK : count;
    __m512 sum = _mm512_setzero_ps();
    for (long i = b * BLOCK; i < end; i += LANES) {
      const __m512 v = widen(x + i, inside(end - i));
      sum = _mm512_fmadd_ps(v, v, sum);
    }
    sums[b] = _mm512_reduce_add_ps(sum);
  }
}

// One step: the gradient times `factor` into both moments, the master moved by them, the weight its rounding, the
// gradient zero. decay: what the master is multiplied by; beta and rest: a moment's and the gradient's share; pace: the
// rate over the first moment's bias; root: 1 / sqrt of the second one's.
WITH_BF16 void adamw(bf16* grad, bf16* weight, float* master, float* first, float* second, long count, float factor,
                     float decay, float beta1, float rest1, float beta2, float rest2, float pace, float root,
                     float eps) {
  const __m512 scale = _mm512_set1_ps(factor), keep = _mm512_set1_ps(decay), b1 = _mm512_set1_ps(beta1);
  const __m512 r1 = _mm512_set1_ps(rest1), b2 = _mm512_set1_ps(beta2), r2 = _mm512_set1_ps(rest2);
  const __m512 step = _mm512_set1_ps(pace), lift = _mm512_set1_ps(root), least = _mm512_set1_ps(eps);
#pragma omp parallel for schedule(static) if (count > SMALL)
  for (long i = 0; i < count; i += LANES) {
    const __mmask16 held = inside(count - i);
    const __m512 g = _mm512_mul_ps(widen(grad + i, held), scale);
    const __m512 m_was = _mm512_maskz_loadu_ps(held, first + i), v_was = _mm512_maskz_loadu_ps(held, second + i);
    const __m512 m = _mm512_fmadd_ps(r1, g, _mm512_mul_ps(b1, m_was));
    const __m512 v = _mm512_fmadd_ps(_mm512_mul_ps(r2, g), g, _mm512_mul_ps(b2, v_was));
    const __m512 below = _mm512_fmadd_ps(_mm512_sqrt_ps(v), lift, least);
    const __m512 moved = _mm512_div_ps(_mm512_mul_ps(step, m), below);
    const __m512 w = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(held, master + i), keep, moved);
    _mm512_mask_storeu_ps(first + i, held, m);
    _mm512_mask_storeu_ps(second + i, held, v);
    _mm512_mask_storeu_ps(master + i, held, w);
    narrow(weight + i, w, held);
    _mm256_mask_storeu_epi16(grad + i, held, _mm256_setzero_si256());
  }
}

}  // extern "C"
