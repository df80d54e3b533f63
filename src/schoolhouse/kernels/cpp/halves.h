// Sixteen numbers as two registers of eight: what the kernels ask of AVX-512, for processors with AVX2 and FMA only.
//
// The kernels are written once, with AVX-512's names. A build for AVX2 reads this file first, which gives the types and
// operations in use, and no others, their meaning by halves. Masks of loads and stores are beginnings here, as all are that
// the kernels make: some first numbers are inside, the others beyond the end. Small numbers are not flushed to 0.

#pragma once

#include <immintrin.h>
#include <string.h>

namespace {

struct Words {
  __m256i low, high;
};

struct Floats {
  __m256 low, high;
  explicit operator Words() const { return {_mm256_castps_si256(low), _mm256_castps_si256(high)}; }
  Floats operator-() const {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(low, sign), _mm256_xor_ps(high, sign)};
  }
};

inline __m256i lanes_of(unsigned mask) {  // all bits of the lanes whose bit is set among the lowest eight
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bits), bits);
}

inline __m256 choose(unsigned mask, __m256 others, __m256 chosen) {
  return _mm256_blendv_ps(others, chosen, _mm256_castsi256_ps(lanes_of(mask)));
}

inline Floats choose(__mmask16 mask, Floats others, Floats chosen) {
  return {choose((unsigned)mask, others.low, chosen.low), choose((unsigned)mask >> 8, others.high, chosen.high)};
}

inline __m256i upper_halves(__m256 x) {  // rounded to bf16 as AVX-512 does it, ties to even, in the lower 16 bits
  const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nothing = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));  // what is no number stays none
  const __m256 is_none = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256 both = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(nothing), is_none);
  return _mm256_srli_epi32(_mm256_castps_si256(both), 16);
}

inline __m256i to_bf16(Floats x) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(upper_halves(x.low), upper_halves(x.high)), 0xd8);
}

inline __m256 firsts(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline __m256 seconds(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff0000)));
}

inline __m256 add_products(__m256 sum, __m256i a, __m256i b) {
  return _mm256_fmadd_ps(seconds(a), seconds(b), _mm256_fmadd_ps(firsts(a), firsts(b), sum));
}

// Products of four bytes without a sign and four with one, added to a whole number of 32 bits.
inline __m256i add_byte_products(__m256i sum, __m256i a, __m256i b) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

inline __m256 times_power(__m256 x, __m256 n) {  // x * 2^n for n from -126 to 127, rounded down
  const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(n)), _mm256_set1_epi32(127));
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
}

// The first numbers of memory, the others 0; and back.
template <class Register, class Number>
inline Register read_first(const void* from, int count) {
  alignas(64) Number held[sizeof(Register) / sizeof(Number)] = {};
  memcpy(held, from, count * sizeof(Number));
  Register x;
  memcpy(&x, held, sizeof(x));
  return x;
}

template <class Number, class Register>
inline void write_first(void* to, Register x, int count) {
  alignas(64) Number held[sizeof(Register) / sizeof(Number)];
  memcpy(held, &x, sizeof(x));
  memcpy(to, held, count * sizeof(Number));
}

inline Floats read_floats(const void* x) {
  return {_mm256_loadu_ps((const float*)x), _mm256_loadu_ps((const float*)x + 8)};
}
inline Words read_words(const void* x) {
  return {_mm256_loadu_si256((const __m256i*)x), _mm256_loadu_si256((const __m256i*)x + 1)};
}
inline void write_floats(void* to, Floats x) {
  _mm256_storeu_ps((float*)to, x.low);
  _mm256_storeu_ps((float*)to + 8, x.high);
}
inline void write_words(void* to, Words x) {
  _mm256_storeu_si256((__m256i*)to, x.low);
  _mm256_storeu_si256((__m256i*)to + 1, x.high);
}

template <int at>
inline __m128i quarter(Words x) {
  return _mm256_extracti128_si256(at < 2 ? x.low : x.high, at % 2);
}

template <int order>
inline Words quarters(Words a, Words b) {
  return {_mm256_set_m128i(quarter<(order >> 2) & 3>(a), quarter<order & 3>(a)),
          _mm256_set_m128i(quarter<(order >> 6) & 3>(b), quarter<(order >> 4) & 3>(b))};
}

inline Floats floats_of(Words x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }

inline Words pick_of_two(Words a, Words places, Words b) {
  uint16_t both[64], at[32], out[32];
  memcpy(both, &a, 64);
  memcpy(both + 32, &b, 64);
  memcpy(at, &places, 64);
  for (int i = 0; i < 32; i++) out[i] = both[at[i] % 64];
  return read_words(out);
}

inline __m128 both_quarters(__m256 x, __m128 (*join)(__m128, __m128)) {
  return join(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}

inline float joined(__m256 x, __m128 (*join)(__m128, __m128)) {
  const __m128 four = both_quarters(x, join), two = join(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(join(two, _mm_movehdup_ps(two)));
}

inline __m128 sum_of(__m128 a, __m128 b) { return _mm_add_ps(a, b); }
inline __m128 higher_of(__m128 a, __m128 b) { return _mm_max_ps(a, b); }

template <int how>
inline __mmask16 compared(Floats a, Floats b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, how)) | _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, how)) << 8;
}

}  // namespace

#define __m512 Floats
#define __m512d Floats
#define __m512i Words
#define __m512bh Words

#define BY_HALVES(name, type, each) \
  namespace {                       \
  inline type name(type a, type b) { return {each(a.low, b.low), each(a.high, b.high)}; } \
  }
#define THREE_BY_HALVES(name, each) \
  namespace {                       \
  inline Floats name(Floats a, Floats b, Floats c) { return {each(a.low, b.low, c.low), each(a.high, b.high, c.high)}; } \
  }

#define _mm512_add_ps halves_add
#define _mm512_sub_ps halves_sub
#define _mm512_mul_ps halves_mul
#define _mm512_div_ps halves_div
#define _mm512_min_ps halves_min
#define _mm512_max_ps halves_max
#define _mm512_unpacklo_ps halves_unpacklo
#define _mm512_unpackhi_ps halves_unpackhi
#define _mm512_or_si512 halves_or
#define _mm512_and_si512 halves_and
#define _mm512_xor_si512 halves_xor
#define _mm512_unpacklo_epi32 halves_unpacklo32
#define _mm512_unpackhi_epi32 halves_unpackhi32
#define _mm512_unpacklo_epi64 halves_unpacklo64
#define _mm512_unpackhi_epi64 halves_unpackhi64
#define _mm512_unpacklo_epi8 halves_unpacklo8
#define _mm512_unpackhi_epi8 halves_unpackhi8
#define _mm512_unpacklo_epi16 halves_unpacklo16
#define _mm512_unpackhi_epi16 halves_unpackhi16
#define _mm512_add_epi32 halves_add_whole
#define _mm512_sub_epi32 halves_sub_whole
BY_HALVES(halves_add, Floats, _mm256_add_ps)
BY_HALVES(halves_sub, Floats, _mm256_sub_ps)
BY_HALVES(halves_mul, Floats, _mm256_mul_ps)
BY_HALVES(halves_div, Floats, _mm256_div_ps)
BY_HALVES(halves_min, Floats, _mm256_min_ps)
BY_HALVES(halves_max, Floats, _mm256_max_ps)
BY_HALVES(halves_unpacklo, Floats, _mm256_unpacklo_ps)
BY_HALVES(halves_unpackhi, Floats, _mm256_unpackhi_ps)
BY_HALVES(halves_or, Words, _mm256_or_si256)
BY_HALVES(halves_and, Words, _mm256_and_si256)
BY_HALVES(halves_xor, Words, _mm256_xor_si256)
BY_HALVES(halves_unpacklo32, Words, _mm256_unpacklo_epi32)
BY_HALVES(halves_unpackhi32, Words, _mm256_unpackhi_epi32)
BY_HALVES(halves_unpacklo64, Words, _mm256_unpacklo_epi64)
BY_HALVES(halves_unpackhi64, Words, _mm256_unpackhi_epi64)
BY_HALVES(halves_unpacklo8, Words, _mm256_unpacklo_epi8)
BY_HALVES(halves_unpackhi8, Words, _mm256_unpackhi_epi8)
BY_HALVES(halves_unpacklo16, Words, _mm256_unpacklo_epi16)
BY_HALVES(halves_unpackhi16, Words, _mm256_unpackhi_epi16)
BY_HALVES(halves_add_whole, Words, _mm256_add_epi32)
BY_HALVES(halves_sub_whole, Words, _mm256_sub_epi32)

#define _mm512_fmadd_ps halves_fmadd
#define _mm512_fmsub_ps halves_fmsub
#define _mm512_fnmadd_ps halves_fnmadd
THREE_BY_HALVES(halves_fmadd, _mm256_fmadd_ps)
THREE_BY_HALVES(halves_fmsub, _mm256_fmsub_ps)
THREE_BY_HALVES(halves_fnmadd, _mm256_fnmadd_ps)

#define _mm512_unpacklo_pd(a, b) floats_of(halves_unpacklo64((Words)(a), (Words)(b)))
#define _mm512_unpackhi_pd(a, b) floats_of(halves_unpackhi64((Words)(a), (Words)(b)))
#define _mm512_castps_pd(x) (x)
#define _mm512_castpd_ps(x) (x)
#define _mm512_castps_si512(x) ((Words)(x))
#define _mm512_castsi512_ps floats_of
#define _mm512_castsi512_si256(x) ((x).low)
#define _mm512_shuffle_i32x4(a, b, order) quarters<order>(a, b)
#define _mm512_shuffle_i64x2(a, b, order) quarters<order>(a, b)
#define _mm512_shuffle_f32x4(a, b, order) floats_of(quarters<order>((Words)(a), (Words)(b)))
#define _mm512_permutex2var_epi16 pick_of_two
#define _mm512_permutexvar_epi16(places, x) pick_of_two(x, places, x)

#define _mm512_setzero_ps() Floats{_mm256_setzero_ps(), _mm256_setzero_ps()}
#define _mm512_setzero_si512() Words{_mm256_setzero_si256(), _mm256_setzero_si256()}
#define _mm512_set1_ps halves_set1
#define _mm512_set1_epi32 halves_set1_epi32
#define _mm512_sqrt_ps halves_sqrt
#define _mm512_roundscale_ps(x, how) halves_round(x)
#define _mm512_scalef_ps halves_scalef
#define _mm512_reduce_ps(x, how) halves_fraction(x)
#define _mm512_rcp14_ps(x) halves_div(halves_set1(1.0f), x)  // more exact than asked for
#define _mm512_slli_epi32 halves_slli
#define _mm512_srli_epi32 halves_srli
#define _mm512_srai_epi32 halves_srai
#define _mm512_cvtps_epi32 halves_whole
#define _mm512_cvtepi32_epi8 halves_bytes
#define _mm512_cvtepu16_epi32 halves_wide16
#define _mm512_cvtepu8_epi32 halves_wide8
#define _mm512_cvtepi8_epi32 halves_signed8
#define _mm512_cvtepi32_ps halves_number
#define _mm512_cvtneps_pbh to_bf16
#define _mm512_cvtne2ps_pbh halves_two_to_bf16
#define _mm512_dpbf16_ps halves_dot
#define _mm512_dpbusd_epi32 halves_dot_bytes
#define _mm512_reduce_add_ps halves_sum
#define _mm512_reduce_max_ps halves_highest
#define _mm512_cmp_ps_mask(a, b, how) compared<how>(a, b)
#define _mm512_mask_mov_ps(others, mask, x) choose((__mmask16)(mask), others, x)
#define _mm512_maskz_mov_ps(mask, x) choose((__mmask16)(mask), _mm512_setzero_ps(), x)
#define _mm512_mask_add_ps(others, mask, a, b) choose((__mmask16)(mask), others, halves_add(a, b))
#define _mm512_mask_max_ps(others, mask, a, b) choose((__mmask16)(mask), others, halves_max(a, b))
#define _mm512_mask3_fmadd_ps(a, b, c, mask) choose((__mmask16)(mask), c, halves_fmadd(a, b, c))

#define _mm512_load_ps read_floats
#define _mm512_loadu_ps read_floats
#define _mm512_store_ps write_floats
#define _mm512_storeu_ps write_floats
#define _mm512_load_si512 read_words
#define _mm512_loadu_si512 read_words
#define _mm512_store_si512 write_words
#define _mm512_stream_si512 write_words
#define _mm512_maskz_loadu_ps halves_some_floats
#define _mm512_mask_storeu_ps halves_keep_floats
#define _mm512_maskz_loadu_epi32 halves_some_words
#define _mm512_mask_storeu_epi32 halves_keep_words
#define _mm512_maskz_loadu_epi16 halves_some_numbers
#define _mm512_mask_storeu_epi16 halves_keep_numbers
#define _mm512_maskz_loadu_epi8 halves_some_bytes
#define _mm256_maskz_loadu_epi16 halves_some_half
#define _mm256_mask_storeu_epi16 halves_keep_half

namespace {

inline Floats halves_set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Words halves_set1_epi32(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Floats halves_sqrt(Floats x) { return {_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high)}; }
inline Floats halves_round(Floats x) { return {_mm256_round_ps(x.low, 8), _mm256_round_ps(x.high, 8)}; }
inline Floats halves_fraction(Floats x) {
  return {_mm256_sub_ps(x.low, _mm256_floor_ps(x.low)), _mm256_sub_ps(x.high, _mm256_floor_ps(x.high))};
}
inline Floats halves_scalef(Floats x, Floats n) { return {times_power(x.low, n.low), times_power(x.high, n.high)}; }
inline Words halves_slli(Words x, int n) { return {_mm256_slli_epi32(x.low, n), _mm256_slli_epi32(x.high, n)}; }
inline Words halves_srli(Words x, int n) { return {_mm256_srli_epi32(x.low, n), _mm256_srli_epi32(x.high, n)}; }
inline Words halves_srai(Words x, int n) { return {_mm256_srai_epi32(x.low, n), _mm256_srai_epi32(x.high, n)}; }
inline Words halves_whole(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline __m128i halves_bytes(Words x) {  // the lowest byte of each
  const __m256i last = _mm256_set1_epi32(255);
  const __m256i pairs = _mm256_packus_epi32(_mm256_and_si256(x.low, last), _mm256_and_si256(x.high, last));
  const __m256i turned = _mm256_permute4x64_epi64(pairs, 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(turned), _mm256_extracti128_si256(turned, 1));
}
inline Words halves_dot_bytes(Words sum, Words a, Words b) {
  return {add_byte_products(sum.low, a.low, b.low), add_byte_products(sum.high, a.high, b.high)};
}
inline Words halves_wide16(__m256i x) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
inline Words halves_wide8(__m128i x) { return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))}; }
inline Words halves_signed8(__m128i x) { return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))}; }
inline Floats halves_number(Words x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Words halves_two_to_bf16(Floats high, Floats low) { return {to_bf16(low), to_bf16(high)}; }
inline Floats halves_dot(Floats sum, Words a, Words b) {
  return {add_products(sum.low, a.low, b.low), add_products(sum.high, a.high, b.high)};
}
inline float halves_sum(Floats x) { return joined(_mm256_add_ps(x.low, x.high), sum_of); }
inline float halves_highest(Floats x) { return joined(_mm256_max_ps(x.low, x.high), higher_of); }

inline Floats halves_some_floats(__mmask16 mask, const void* x) {
  return mask == 0xffff ? read_floats(x) : read_first<Floats, float>(x, __builtin_popcount(mask));
}
inline void halves_keep_floats(void* to, __mmask16 mask, Floats x) {
  mask == 0xffff ? write_floats(to, x) : write_first<float>(to, x, __builtin_popcount(mask));
}
inline Words halves_some_words(__mmask16 mask, const void* x) {
  return mask == 0xffff ? read_words(x) : read_first<Words, int>(x, __builtin_popcount(mask));
}
inline void halves_keep_words(void* to, __mmask16 mask, Words x) {
  mask == 0xffff ? write_words(to, x) : write_first<int>(to, x, __builtin_popcount(mask));
}
inline Words halves_some_numbers(__mmask32 mask, const void* x) {
  return mask == ~0u ? read_words(x) : read_first<Words, uint16_t>(x, __builtin_popcount(mask));
}
inline Words halves_some_bytes(__mmask64 mask, const void* x) {
  return mask == ~0ull ? read_words(x) : read_first<Words, int8_t>(x, __builtin_popcountll(mask));
}
inline void halves_keep_numbers(void* to, __mmask32 mask, Words x) {
  mask == ~0u ? write_words(to, x) : write_first<uint16_t>(to, x, __builtin_popcount(mask));
}
inline __m256i halves_some_half(__mmask16 mask, const void* x) {
  return mask == 0xffff ? _mm256_loadu_si256((const __m256i*)x) : read_first<__m256i, uint16_t>(x, __builtin_popcount(mask));
}
inline void halves_keep_half(void* to, __mmask16 mask, __m256i x) {
  mask == 0xffff ? _mm256_storeu_si256((__m256i*)to, x) : write_first<uint16_t>(to, x, __builtin_popcount(mask));
}

}  // namespace
