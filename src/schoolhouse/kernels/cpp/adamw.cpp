// A step of AdamW in one pass over memory, and a gradient's sum of squares.

#include <vector>

#include "lanes.h"

namespace {

constexpr long BLOCK = 1 << 14;  // numbers whose squares are one sum, and that a thread moves at once

// A weight as the caller tells of it. pace: the rate over the first moment's bias; root: 1 / sqrt of the second one's.
struct Weight {
  bf16 *grad, *weight;
  float *master, *first, *second;
  int64_t count;
  double pace, root;
};

struct Pace {
  float factor, decay, beta1, rest1, beta2, rest2, eps;
};

struct Part {
  long weight, first;
};

// Numbers from i to before `end`: the gradient into both moments, the master moved by them, the weight its rounding, the
// gradient zero. The weight is not read again soon: it goes past the caches.
WITH_BF16 void move(const Weight& w, const Pace& p, long i, long end) {
  const __m512 scale = _mm512_set1_ps(p.factor), keep = _mm512_set1_ps(p.decay), b1 = _mm512_set1_ps(p.beta1);
  const __m512 r1 = _mm512_set1_ps(p.rest1), b2 = _mm512_set1_ps(p.beta2), r2 = _mm512_set1_ps(p.rest2);
  const __m512 step = _mm512_set1_ps(w.pace), lift = _mm512_set1_ps(w.root), least = _mm512_set1_ps(p.eps);
  const bool past = (uintptr_t)w.weight % 32 == 0;
  for (; i < end; i += LANES) {
    const __mmask16 held = inside(end - i);
    const __m512 g = _mm512_mul_ps(widen(w.grad + i, held), scale);
    const __m512 m_was = _mm512_maskz_loadu_ps(held, w.first + i), v_was = _mm512_maskz_loadu_ps(held, w.second + i);
    const __m512 m = _mm512_fmadd_ps(r1, g, _mm512_mul_ps(b1, m_was));
    const __m512 v = _mm512_fmadd_ps(_mm512_mul_ps(r2, g), g, _mm512_mul_ps(b2, v_was));
    const __m512 below = _mm512_fmadd_ps(_mm512_sqrt_ps(v), lift, least);
    const __m512 moved = _mm512_div_ps(_mm512_mul_ps(step, m), below);
    const __m512 master = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(held, w.master + i), keep, moved);
    _mm512_mask_storeu_ps(w.first + i, held, m);
    _mm512_mask_storeu_ps(w.second + i, held, v);
    _mm512_mask_storeu_ps(w.master + i, held, master);
    if (past && held == 0xffff)
      _mm256_stream_si256((__m256i*)(w.weight + i), (__m256i)_mm512_cvtneps_pbh(master));
    else
      narrow(w.weight + i, master, held);
    _mm256_mask_storeu_epi16(w.grad + i, held, _mm256_setzero_si256());
  }
  _mm_sfence();
}

}  // namespace

extern "C" {

// The sum of squares of each block of 16,384 numbers of some tensors: the caller adds them in their order, so that the sum
// does not depend on the number of threads. tensors: where each begins, and how many numbers it has.
WITH_BF16 void squares(const int64_t* tensors, long count, double* sums) {
  std::vector<Part> parts;
  for (long t = 0; t < count; t++)
    for (long i = 0; i < tensors[2 * t + 1]; i += BLOCK) parts.push_back({t, i});
#pragma omp parallel for schedule(static) if (parts.size() > 1)
  for (long b = 0; b < (long)parts.size(); b++) {
    const bf16* x = (const bf16*)tensors[2 * parts[b].weight];
    const long first = parts[b].first, last = tensors[2 * parts[b].weight + 1];
    const long end = first + BLOCK < last ? first + BLOCK : last;
    __m512 sum = _mm512_setzero_ps();
    for (long i = first; i < end; i += LANES) {
      const __m512 v = widen(x + i, inside(end - i));
      sum = _mm512_fmadd_ps(v, v, sum);
    }
    sums[b] = _mm512_reduce_add_ps(sum);
  }
}

// A step of `count` weights. What all share: the gradient is multiplied by `factor`; decay: what the master is multiplied by;
// beta and rest: a moment's and the gradient's share. Blocks of all weights are shared out among the threads together.
void adamw(const Weight* weights, long count, float factor, float decay, float beta1, float rest1, float beta2, float rest2,
           float eps) {
  const Pace pace = {factor, decay, beta1, rest1, beta2, rest2, eps};
  std::vector<Part> parts;
  for (long w = 0; w < count; w++)
    for (long i = 0; i < weights[w].count; i += BLOCK) parts.push_back({w, i});
#pragma omp parallel for schedule(dynamic, 4) if (parts.size() > 1)
  for (long p = 0; p < (long)parts.size(); p++) {
    const Weight& weight = weights[parts[p].weight];
    move(weight, pace, parts[p].first, parts[p].first + BLOCK < weight.count ? parts[p].first + BLOCK : weight.count);
  }
}

}  // extern "C"
