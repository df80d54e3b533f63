// Small operations on rows of bf16 numbers, forward and backward, each in one pass over memory and summed in fp32.
//
// What is summed over rows is summed in blocks of a fixed size, and the blocks in their order: the result does not
// depend on the number of threads.

#include <string.h>

#include "rows.h"

namespace {

constexpr long ROWS = 64;       // whose part of a weight's gradient is one sum
constexpr long PART = 1 << 10;  // numbers of a gate that a thread takes at once

struct Pair {
  __m512 first, second;
};

// Sixteen pairs from a row of numbers: halves of it, or neighbours.
WITH_BF16 inline Pair pairs_at(const bf16* x, long i, long half, bool neighbours, __mmask16 held) {
  if (!neighbours) return {widen(x + i, held), widen(x + half + i, held)};
  const __m512i both = _mm512_maskz_loadu_epi32(held, x + 2 * i);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)))};
}

WITH_BF16 inline void keep_pairs(bf16* to, Pair p, long i, long half, bool neighbours, __mmask16 held) {
  if (!neighbours) {
    narrow(to + i, p.first, held);
    narrow(to + half + i, p.second, held);
    return;
  }
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(p.first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(p.second));
  _mm512_mask_storeu_epi32(to + 2 * i, held, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

}  // namespace

extern "C" {

// y = x / sqrt(mean(x^2) + eps) * (shift + weight), row by row, which may lie apart; width is a multiple of 16. Their factors are kept
// in `inverses` unless that is null.
WITH_BF16 void rms_norm(const bf16* x, long x_row, const bf16* weight, bf16* y, long y_row, float* inverses, long rows,
                        long width, float eps, float shift) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
  for (long r = 0; r < rows; r++) {
    const float inverse = norm_row(x + r * x_row, weight, y + r * y_row, width, eps, shift);
    if (inverses) inverses[r] = inverse;
  }
}

// The gradients of x, on top of `beside` unless that is null, and, unless `to_weight` is null, of the weight; `parts` has room for (rows / 64, width) sums.
WITH_BF16 void rms_norm_back(const bf16* grad, long grad_row, const bf16* x, long x_row, const bf16* weight,
                             const float* inverses, const bf16* beside, bf16* to_x, long to_row, float* parts,
                             bf16* to_weight, long rows, long width, float shift) {
  const long blocks = (rows + ROWS - 1) / ROWS;
  const __m512 more = _mm512_set1_ps(shift);
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
  for (long b = 0; b < blocks; b++) {
    float* part = parts + b * width;
    if (to_weight) memset(part, 0, width * sizeof(float));
    const long end = (b + 1) * ROWS < rows ? (b + 1) * ROWS : rows;
    for (long r = b * ROWS; r < end; r++) {
      const bf16 *g = grad + r * grad_row, *from = x + r * x_row;
      const __m512 inverse = _mm512_set1_ps(inverses[r]);
      __m512 inner = _mm512_setzero_ps();
      for (long i = 0; i < width; i += LANES) {
        const __m512 normed = _mm512_mul_ps(widen(from + i), inverse), given = widen(g + i);
        const __m512 each = _mm512_mul_ps(given, normed);
        if (to_weight) _mm512_storeu_ps(part + i, _mm512_add_ps(_mm512_loadu_ps(part + i), each));
        inner = _mm512_fmadd_ps(each, _mm512_add_ps(widen(weight + i), more), inner);
      }
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(inner) / width);
      for (long i = 0; i < width; i += LANES) {
        const __m512 slope = _mm512_mul_ps(widen(g + i), _mm512_add_ps(widen(weight + i), more));
        const __m512 normed = _mm512_mul_ps(widen(from + i), inverse);
        const __m512 all = beside ? widen(beside + r * to_row + i) : _mm512_setzero_ps();
        narrow(to_x + r * to_row + i, _mm512_fmadd_ps(_mm512_fnmadd_ps(normed, mean, slope), inverse, all));
      }
    }
  }
  if (!to_weight) return;
#pragma omp parallel for schedule(static) if (blocks * width > SMALL)
  for (long i = 0; i < width; i += LANES) {
    __m512 sum = _mm512_setzero_ps();
    for (long b = 0; b < blocks; b++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(parts + b * width + i));
    narrow(to_weight + i, sum);
  }
}

// y = gate * sigmoid(gate) * up, number by number.
WITH_BF16 void gated(const bf16* gate, const bf16* up, bf16* y, long count) {
#pragma omp parallel for schedule(static) if (count > SMALL)
  for (long i = 0; i < count; i += PART) gate_row(gate + i, up + i, y + i, count - i < PART ? count - i : PART);
}

// The gradients of gate and up. A gradient may take the place of what it is made from.
WITH_BF16 void gated_back(const bf16* grad, const bf16* gate, const bf16* up, bf16* to_gate, bf16* to_up, long count) {
  const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static) if (count > SMALL)
  for (long i = 0; i < count; i += LANES) {
    const __mmask16 held = inside(count - i);
    const __m512 d = widen(grad + i, held), g = widen(gate + i, held), u = widen(up + i, held), s = sigmoid(g);
    const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
    narrow(to_up + i, _mm512_mul_ps(d, _mm512_mul_ps(g, s)), held);
    narrow(to_gate + i, _mm512_mul_ps(_mm512_mul_ps(d, u), slope), held);
  }
}

// Heads (tokens, heads, width) whose numbers from `still` on are `half` pairs, turned by their token's angles: halves,
// or where they are neighbours these, which come out as halves. What lies before and behind them is copied. `back`
// turns the other way and puts neighbours where they were. The heads of x may lie apart, those of a token of y lie end to end.
WITH_BF16 void turn(const bf16* x, long token_step, long head_step, const bf16* cosine, const bf16* sine, bf16* y,
                    long y_step, long tokens, long heads, long width, long still, long half, long neighbours, long back) {
  const long behind = still + 2 * half;
  const __m512i sign = _mm512_set1_epi32(back ? 0x80000000 : 0);
#pragma omp parallel for schedule(static) if (tokens * heads * width > SMALL)
  for (long t = 0; t < tokens; t++)
    for (long h = 0; h < heads; h++) {
      const bf16* from = x + t * token_step + h * head_step;
      bf16* to = y + t * y_step + h * width;
      if (still) memcpy(to, from, still * sizeof(bf16));
      if (behind < width) memcpy(to + behind, from + behind, (width - behind) * sizeof(bf16));
      for (long i = 0; i < half; i += LANES) {
        const __mmask16 held = inside(half - i);
        const Pair p = pairs_at(from + still, i, half, neighbours && !back, held);
        const __m512 c = widen(cosine + t * half + i, held);
        const __m512 s = _mm512_castsi512_ps(
            _mm512_xor_si512(_mm512_castps_si512(widen(sine + t * half + i, held)), sign));
        keep_pairs(to + still,
                   {_mm512_fmsub_ps(p.first, c, _mm512_mul_ps(p.second, s)),
                    _mm512_fmadd_ps(p.second, c, _mm512_mul_ps(p.first, s))},
                   i, half, neighbours && back, held);
      }
    }
}

}  // extern "C"
