// Pairs of numbers turned by angles: halves of a row, or neighbours, which come out as halves.

#pragma once

#include "lanes.h"

namespace {

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

// `half` pairs of x, of any number, turned to y; `back` turns the other way and puts neighbours where they were.
WITH_BF16 inline void turn_pairs_of(const bf16* x, const bf16* cosine, const bf16* sine, bf16* y, long half,
                                    bool neighbours, bool back) {
  const __m512i sign = _mm512_set1_epi32(back ? 0x80000000 : 0);
  for (long i = 0; i < half; i += LANES) {
    const __mmask16 held = inside(half - i);
    const Pair p = pairs_at(x, i, half, neighbours && !back, held);
    const __m512 c = widen(cosine + i, held);
    const __m512 s = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(widen(sine + i, held)), sign));
    keep_pairs(y,
               {_mm512_fmsub_ps(p.first, c, _mm512_mul_ps(p.second, s)),
                _mm512_fmadd_ps(p.second, c, _mm512_mul_ps(p.first, s))},
               i, half, neighbours && back, held);
  }
}

}  // namespace
