// Small operations on rows of bf16 numbers, each in one pass over memory and summed in fp32.

#include "lanes.h"

namespace {

constexpr long SMALL = 1 << 14;  // numbers below which a second thread costs more than it does

// 1 / (1 + e^-x).
WITH_BF16 inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), far = _mm512_set1_ps(87.0f);
  const __m512 held = _mm512_min_ps(_mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), -far), far);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(held)));
}

}  // namespace

extern "C" {

// y = x / sqrt(mean(x^2) + eps) * weight, row by row; width is a multiple of 16.
WITH_BF16 void rms_norm(const bf16* x, const bf16* weight, bf16* y, long rows, long width, float eps) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
  for (long r = 0; r < rows; r++) {
    const bf16* from = x + r * width;
    __m512 square = _mm512_setzero_ps();
    for (long i = 0; i < width; i += LANES) {
      const __m512 v = widen(from + i);
      square = _mm512_fmadd_ps(v, v, square);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(square) / width + eps));
    for (long i = 0; i < width; i += LANES)
      narrow(y + r * width + i, _mm512_mul_ps(_mm512_mul_ps(widen(from + i), inverse), widen(weight + i)));
  }
}

// y = gate * sigmoid(gate) * up, number by number; count is a multiple of 16.
WITH_BF16 void gated(const bf16* gate, const bf16* up, bf16* y, long count) {
#pragma omp parallel for schedule(static) if (count > SMALL)
  for (long i = 0; i < count; i += LANES) {
    const __m512 g = widen(gate + i);
    narrow(y + i, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), widen(up + i)));
  }
}

// Heads (tokens, heads, width) turned by their token's angles, halves as pairs; half of the width a multiple of 16.
WITH_BF16 void turn(const bf16* x, const bf16* cosine, const bf16* sine, bf16* y, long tokens, long heads, long width) {
  const long half = width / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * width > SMALL)
  for (long t = 0; t < tokens; t++)
    for (long h = 0; h < heads; h++) {
      const bf16* from = x + (t * heads + h) * width;
      bf16* to = y + (t * heads + h) * width;
      for (long i = 0; i < half; i += LANES) {
        const __m512 a = widen(from + i), b = widen(from + half + i);
        const __m512 c = widen(cosine + t * half + i), s = widen(sine + t * half + i);
        narrow(to + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        narrow(to + half + i, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
      }
    }
}

}  // extern "C"
