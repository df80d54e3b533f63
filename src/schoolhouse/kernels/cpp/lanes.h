// What all kernels share: sixteen numbers at once, bf16 in memory and fp32 in registers.

#pragma once

#include <immintrin.h>
#include <stdint.h>

typedef uint16_t bf16;

// A build for AVX2 and FMA has these in its flags, and sixteen numbers in two registers.
#ifdef BY_AVX2
#include "halves.h"
#define WITH_BF16
constexpr bool HALVED = true;
#else
#define WITH_BF16 __attribute__((target("avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx512vnni")))
constexpr bool HALVED = false;
#endif

namespace {

constexpr long LANES = 16;
constexpr long SMALL = 1 << 14;  // numbers below which a second thread costs more than it does

WITH_BF16 inline __m512 widen(const bf16* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

WITH_BF16 inline void narrow(bf16* to, __m512 x) {
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
}

// The lanes that hold a number where so many are left: at the end of a row fewer than sixteen.
inline __mmask16 inside(long left) { return left >= LANES ? 0xffff : (1u << left) - 1; }

WITH_BF16 inline __m512 widen(const bf16* x, __mmask16 held) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(held, x)), 16));
}

WITH_BF16 inline void narrow(bf16* to, __m512 x, __mmask16 held) {
  _mm256_mask_storeu_epi16(to, held, (__m256i)_mm512_cvtneps_pbh(x));
}

// The first and the last 16 of 32 numbers.
WITH_BF16 inline __m512 first_half(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16));
}
WITH_BF16 inline __m512 last_half(__m512i x) { return first_half(_mm512_shuffle_i64x2(x, x, 0xee)); }

// e^x for -87 <= x <= 88, to about 2e-7 of itself.
WITH_BF16 inline __m512 exponential(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 720);
  const float terms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (float term : terms) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(y, n);
}

// e^x for x <= 0; below -87 it is 0.
WITH_BF16 inline __m512 share_of(__m512 x) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(exponential(x), tiny, _mm512_setzero_ps());
}

// 2^x for x up to about 100, to about 3e-6 of itself; below -126 as if it were that, and no number for none. The polynomial is
// the best one of its degree between 0 and 1; `scalef` takes the whole part of x by itself.
WITH_BF16 inline __m512 power_of_two(__m512 x) {
  constexpr int DOWN = 1;  // what is left after rounding down
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // in this order what is no number stays none
  const __m512 r = _mm512_reduce_ps(x, DOWN);
  __m512 y = _mm512_set1_ps(1.35341704e-2f);
  const float terms[] = {5.20114636e-2f, 2.41442749e-1f, 6.93003838e-1f, 1.00000259f};
  for (float term : terms) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(y, x);
}

// The first 16 of 32 numbers of 16 bits with the others: 0, 16, 1, 17 and so on.
WITH_BF16 inline __m512i side_by_side(__m512i x) {
#ifdef BY_AVX2
  const __m512i high = _mm512_shuffle_i64x2(x, x, 0xee);
  const __m512i a = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
  return _mm512_or_si512(a, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)), 16));
#else
  alignas(64) static const uint16_t PLACES[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(PLACES), x);
#endif
}

// What unpacking two registers left, to one row: four numbers of the one, four of the other, in turns.
WITH_BF16 inline void in_turns(__m512 low, __m512 high, __m512& first, __m512& second) {
  const __m512 a = _mm512_shuffle_f32x4(low, high, 0x44), b = _mm512_shuffle_f32x4(low, high, 0xee);
  first = _mm512_shuffle_f32x4(a, a, 0xd8), second = _mm512_shuffle_f32x4(b, b, 0xd8);
}

// 16 rows of 16 pairs become columns.
WITH_BF16 inline void turn_pairs(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
      y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
    x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
  }
}

}  // namespace
