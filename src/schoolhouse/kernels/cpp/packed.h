// How weights lie that were packed for a product: panels of 16 columns, pairs of neighbours along k side by side, as both
// AVX-512's dot products and AMX's tiles want them. Codes of 8 and of 4 bits are exact in bf16: they are widened as they
// are read.

#pragma once

#include "lanes.h"

namespace {

constexpr long PANEL = 16, COLUMNS = 32;
constexpr long CACHED = 1 << 19;  // numbers that stay in the second cache

inline long up(long n, long d) { return (n + d - 1) / d; }

// Two codes of 4 bits, 8 added to each, the first one low.
struct Nibbles {
  uint8_t both;
};

// Scales of groups of so many pairs along k: (groups, columns).
struct Scales {
  const float* first;
  long columns, pairs;
};

enum Scaling { NONE, WHOLE, GROUPS };  // of sums: not at all, a column's by one scale, or by one for each group

// Weights further on by so many.
inline const bf16* beyond(const bf16* weight, long count) { return weight + count; }
inline const int8_t* beyond(const int8_t* codes, long count) { return codes + count; }
inline const Nibbles* beyond(const Nibbles* codes, long count) { return codes + count / 2; }

// Two neighbours along k of each of 16 columns.
WITH_BF16 inline __m512bh pairs_of(const bf16* weight) { return (__m512bh)_mm512_loadu_si512(weight); }

WITH_BF16 inline __m512bh pairs_of(const int8_t* codes) {
  const __m512i even = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
  const __m512i odd = (__m512i)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes + 1)));
  return (__m512bh)_mm512_or_si512(_mm512_srli_epi32(even, 16), odd);  // codes are exact in their upper halves
}

#ifdef BY_AVX2  // without an instruction that looks words up, codes are counted and become numbers as those of 8 bits do
inline __m512bh pairs_of(const Nibbles* codes) {
  const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
  const __m512 even = _mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(15)));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4)), eight = _mm512_set1_ps(8.0f);
  const __m512i low = (__m512i)_mm512_sub_ps(even, eight), high = (__m512i)_mm512_sub_ps(odd, eight);
  return _mm512_or_si512(_mm512_srli_epi32(low, 16), high);
}
#else
WITH_BF16 inline __m512bh pairs_of(const Nibbles* codes) {
#define NUMBERS 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, \
                0x40a0, 0x40c0, 0x40e0
  alignas(64) static constexpr bf16 NUMBER[32] = {NUMBERS, NUMBERS};  // -8 to 7; of a place only 5 bits are looked at
#undef NUMBERS
  const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
  const __m512i places = _mm512_or_si512(both, _mm512_slli_epi32(both, 12));
  return (__m512bh)_mm512_permutexvar_epi16(places, _mm512_load_si512(NUMBER));
}
#endif

}  // namespace
