// Small operations on rows of bf16 numbers, forward and backward, each in one pass over memory and summed in fp32.
//
// What is summed over rows is summed in blocks of a fixed size, and the blocks in their order: the result does not
// depend on the number of threads.

#include <string.h>

#include "rows.h"
#include "turned.h"

namespace {

constexpr long ROWS = 64;       // whose part of a weight's gradient is one sum
constexpr long PART = 1 << 10;  // numbers of a gate that a thread takes at once

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
    const __m512 d = widen(grad + i, held), g = widen(gate + i, held), u = widen(up + i, held), s = opening(g);
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
#pragma omp parallel for schedule(static) if (tokens * heads * width > SMALL)
  for (long t = 0; t < tokens; t++)
    for (long h = 0; h < heads; h++) {
      const bf16* from = x + t * token_step + h * head_step;
      bf16* to = y + t * y_step + h * width;
      if (still) memcpy(to, from, still * sizeof(bf16));
      if (behind < width) memcpy(to + behind, from + behind, (width - behind) * sizeof(bf16));
      turn_pairs_of(from + still, cosine + t * half, sine + t * half, to + still, half, neighbours, back);
    }
}

}  // extern "C"
