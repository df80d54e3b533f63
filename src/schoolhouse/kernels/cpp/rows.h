// Small operations on one row of bf16 numbers, each in one pass and in fp32; lengths are multiples of 16 unless said.

#pragma once

#include "lanes.h"

namespace {

// 1 / (1 + e^-x).
WITH_BF16 inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), far = _mm512_set1_ps(87.0f);
  const __m512 held = _mm512_min_ps(_mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), -far), far);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(held)));
}

// The same to about 3e-6 of itself: for what is rounded to bf16.
WITH_BF16 inline __m512 opening(__m512 x) {
  const __m512 power = _mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
  const __m512 sum = _mm512_add_ps(_mm512_set1_ps(1.0f), power_of_two(power)), first = _mm512_rcp14_ps(sum);
  return _mm512_mul_ps(first, _mm512_fnmadd_ps(sum, first, _mm512_set1_ps(2.0f)));
}

// y = x / sqrt(mean(x^2) + eps) * (shift + weight); returns the factor of x.
WITH_BF16 inline float norm_row(const bf16* x, const bf16* weight, bf16* y, long width, float eps, float shift) {
  __m512 square = _mm512_setzero_ps();
  for (long i = 0; i < width; i += LANES) {
    const __m512 v = widen(x + i);
    square = _mm512_fmadd_ps(v, v, square);
  }
  const float factor = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(square) / width + eps);
  const __m512 inverse = _mm512_set1_ps(factor), more = _mm512_set1_ps(shift);
  for (long i = 0; i < width; i += LANES) {
    const __m512 w = _mm512_add_ps(widen(weight + i), more);
    narrow(y + i, _mm512_mul_ps(_mm512_mul_ps(widen(x + i), inverse), w));
  }
  return factor;
}

// A head turned by its token's angles, halves as pairs.
WITH_BF16 inline void turn_head(const bf16* x, const bf16* cosine, const bf16* sine, bf16* y, long half) {
  for (long i = 0; i < half; i += LANES) {
    const __m512 a = widen(x + i), b = widen(x + half + i), c = widen(cosine + i), s = widen(sine + i);
    narrow(y + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
    narrow(y + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
  }
}

// y = gate * sigmoid(gate) * up, of any length.
WITH_BF16 inline void gate_row(const bf16* gate, const bf16* up, bf16* y, long count) {
  for (long i = 0; i < count; i += LANES) {
    const __mmask16 held = inside(count - i);
    const __m512 g = widen(gate + i, held);
    narrow(y + i, _mm512_mul_ps(_mm512_mul_ps(g, opening(g)), widen(up + i, held)), held);
  }
}

// x += y.
WITH_BF16 inline void add_row(bf16* x, const bf16* y, long count) {
  for (long i = 0; i < count; i += LANES) narrow(x + i, _mm512_add_ps(widen(x + i), widen(y + i)));
}

}  // namespace
