// Small operations on rows of bf16 numbers, each in one pass over memory and summed in fp32.

#include <immintrin.h>
#include <stdint.h>

typedef uint16_t bf16;

#define WITH_BF16 __attribute__((target("avx512f,avx512bf16,avx512bw,avx512vl,avx512dq")))

namespace {

constexpr long LANES = 16, SMALL = 1 << 14;  // numbers below which a second thread costs more than it does

WITH_BF16 inline __m512 widen(const bf16* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

WITH_BF16 inline void narrow(bf16* to, __m512 x) {
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
}

WITH_BF16 inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(88.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 720);
  const float terms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float term : terms) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(y, n);
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
    const __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(_mm512_sub_ps(_mm512_setzero_ps(), g)));
    narrow(y + i, _mm512_mul_ps(_mm512_div_ps(g, below), widen(up + i)));
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
