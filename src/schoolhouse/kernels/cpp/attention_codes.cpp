// Attention of one new token in each running text, over keys and values that the cache holds as int8 codes.
//
// Products are of bytes, and their sums exact. A query becomes whole numbers of 16 bits, relative to its largest, and so do
// the shares of a block of tokens, times the scales of the values; each such number is two bytes. Keys of 16 tokens become
// columns first, so that a lane is a token and no sum runs across lanes; of the values four tokens are laid side by side.

#include <omp.h>
#include <string.h>

#include "attention.h"

namespace {

constexpr long LINE = 64;    // codes that memory hands over at once
constexpr long BLOCK = 64;   // tokens whose shares are relative to the largest among them
constexpr long TOGETHER = 4;  // bytes that one lane multiplies and adds
constexpr long TURNED = LANES * LINE;
constexpr float MOST = 127 * 256 + 127, MOST_SHARE = 65535, LEAST = 1e-30f;

inline long lines(long width) { return (width + LINE - 1) / LINE; }

inline __mmask64 bytes_inside(long left) { return left >= LINE ? ~0ull : (1ull << left) - 1; }

WITH_BF16 inline __m512 magnitude(__m512 x) { return _mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), x)); }

// Bytes behind the last number up to a whole line are 0. What is no number makes the factor none.
WITH_BF16 Part split_query(const bf16* q, long width, int8_t* high, int8_t* low) {
  __m512 most = _mm512_setzero_ps(), none = most, highs = most, lows = most;
  for (long d = 0; d < width; d += LANES) {
    const __m512 x = widen(q + d);
    most = _mm512_max_ps(most, magnitude(x));
    none = _mm512_fmadd_ps(x, _mm512_setzero_ps(), none);
  }
  const float highest = _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(highest > LEAST ? MOST / highest : 0.0f);
  for (long d = 0; d < width; d += LANES) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(widen(q + d), inverse));
    const __m512i lower = _mm512_srai_epi32(_mm512_slli_epi32(whole, 24), 24);
    const __m512i upper = _mm512_srai_epi32(_mm512_sub_epi32(whole, lower), 8);
    _mm_storeu_si128((__m128i*)(high + d), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128((__m128i*)(low + d), _mm512_cvtepi32_epi8(lower));
    highs = _mm512_add_ps(highs, _mm512_cvtepi32_ps(upper));
    lows = _mm512_add_ps(lows, _mm512_cvtepi32_ps(lower));
  }
  memset(high + width, 0, lines(width) * LINE - width);
  memset(low + width, 0, lines(width) * LINE - width);
  return {highest / MOST + _mm512_reduce_add_ps(none), -128 * (int)_mm512_reduce_add_ps(highs),
          -128 * (int)_mm512_reduce_add_ps(lows)};
}

// 16 keys, of which the first `count` are there, to columns of 4 bytes a token, as c + 128.
WITH_BF16 void turn_keys(const int8_t* keys, long row, long width, long count, int8_t* turned) {
  const __m512i middle = _mm512_set1_epi32(0x80808080);
  for (long d = 0; d < width; d += LINE) {
    const __mmask64 inside = bytes_inside(width - d);
    __m512i x[LANES];
    if (count == LANES && inside == ~0ull) {
#pragma GCC unroll 16
      for (long s = 0; s < LANES; s++) x[s] = _mm512_loadu_si512(keys + s * row + d);
    } else {
      for (long s = 0; s < LANES; s++) x[s] = _mm512_maskz_loadu_epi8(inside, keys + (s < count ? s : 0) * row + d);
    }
    turn_pairs(x);
#pragma GCC unroll 16
    for (long i = 0; i < LANES; i++)
      _mm512_store_si512(turned + LANES * d + i * LINE, _mm512_xor_si512(x[i], middle));
  }
}

inline int four_bytes(const void* x) {
  int held;
  memcpy(&held, x, sizeof(held));
  return held;
}

// Scores of R queries with 16 turned keys, which have these scales; `more`: added to what is there.
template <int R>
WITH_BF16 void score_some(const int8_t* turned, long columns, const int8_t* digits, long each, const Part* parts,
                          const bf16* scales, __mmask16 held, float* scores, long apart, bool more) {
  __m512i high[R][2], low[R][2];
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) {
    high[i][0] = _mm512_set1_epi32(parts[i].highs), low[i][0] = _mm512_set1_epi32(parts[i].lows);
    high[i][1] = low[i][1] = _mm512_setzero_si512();
  }
  for (long c = 0; c < columns; c += 2)
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++) {
      const __m512i keys = _mm512_load_si512(turned + (c + odd) * LINE);
#pragma GCC unroll 4
      for (int i = 0; i < R; i++) {
        const int8_t* own = digits + 2 * i * each + (c + odd) * TOGETHER;
        high[i][odd] = _mm512_dpbusd_epi32(high[i][odd], keys, _mm512_set1_epi32(four_bytes(own)));
        low[i][odd] = _mm512_dpbusd_epi32(low[i][odd], keys, _mm512_set1_epi32(four_bytes(own + each)));
      }
    }
#pragma GCC unroll 4
  for (int i = 0; i < R; i++) {
    const __m512 upper = _mm512_cvtepi32_ps(_mm512_add_epi32(high[i][0], high[i][1]));
    const __m512 lower = _mm512_cvtepi32_ps(_mm512_add_epi32(low[i][0], low[i][1]));
    const __m512 whole = _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0f), lower);
    __m512 found = _mm512_mul_ps(_mm512_mul_ps(whole, _mm512_set1_ps(parts[i].factor)), widen(scales, held));
    if (more) found = _mm512_add_ps(found, _mm512_loadu_ps(scores + i * apart));
    _mm512_storeu_ps(scores + i * apart, found);
  }
}

// The same for any number of queries.
void score_codes(long queries, const int8_t* turned, long columns, const int8_t* digits, long each, const Part* parts,
                 const bf16* scales, __mmask16 held, float* scores, long apart, bool more) {
  for (long i = 0; i < queries; i += 4) {
    const auto some = queries - i == 1   ? score_some<1>
                      : queries - i == 2 ? score_some<2>
                      : queries - i == 3 ? score_some<3>
                                         : score_some<4>;
    some(turned, columns, digits + 2 * i * each, each, parts + i, scales, held, scores + i * apart, apart, more);
  }
}

// Shares of a block of tokens times their values' scales, as whole numbers of 16 bits without a sign: high bytes, then low
// ones. Returns the factor that they are to be multiplied by.
WITH_BF16 float split_shares(const float* shares, const bf16* scales, long tokens, int8_t* high, int8_t* low) {
  __m512 most = _mm512_setzero_ps(), none = most, weight[BLOCK / LANES];
  for (long s = 0; s < tokens; s += LANES) {
    const __mmask16 held = inside(tokens - s);
    const __m512 x = _mm512_maskz_mov_ps(held, _mm512_mul_ps(_mm512_loadu_ps(shares + s), widen(scales + s, held)));
    most = _mm512_max_ps(most, x);
    none = _mm512_fmadd_ps(x, _mm512_setzero_ps(), none);
    weight[s / LANES] = x;
  }
  const float highest = _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(highest > LEAST ? MOST_SHARE / highest : 0.0f);
  for (long s = 0; s < tokens; s += LANES) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(weight[s / LANES], inverse));
    _mm_storeu_si128((__m128i*)(high + s), _mm512_cvtepi32_epi8(_mm512_srli_epi32(whole, 8)));
    _mm_storeu_si128((__m128i*)(low + s), _mm512_cvtepi32_epi8(whole));
  }
  return highest / MOST_SHARE + _mm512_reduce_add_ps(none);
}

// Adds 64 numbers of each value of a block, each times its shares, to the sums of R queries. First stand the sums of the
// numbers 0 to 3, 16 to 19, 32 to 35 and 48 to 51, then those of 4 to 7, and so on.
template <int R>
WITH_BF16 void add_some(float* sums, long depth, const int8_t* digits, const float* factors, const int8_t* values, long row,
                        long tokens, __mmask64 held, const Road* road, long from) {
  __m512i high[R][4], low[R][4];
#pragma GCC unroll 3
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) high[i][p] = low[i][p] = _mm512_setzero_si512();
  for (long s = 0; s < tokens; s += TOGETHER) {
    __m512i x[TOGETHER], four[4];
    if (road) road->ask(from + s, from + s + TOGETHER);
#pragma GCC unroll 4
    for (long t = 0; t < TOGETHER; t++) {
      const int8_t* own = values + (s + t < tokens ? s + t : s) * row;  // beyond the last the share is 0
      x[t] = held == ~0ull ? _mm512_loadu_si512(own) : _mm512_maskz_loadu_epi8(held, own);
    }
    const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
    four[0] = _mm512_unpacklo_epi16(a, c), four[1] = _mm512_unpackhi_epi16(a, c);
    four[2] = _mm512_unpacklo_epi16(b, d), four[3] = _mm512_unpackhi_epi16(b, d);
#pragma GCC unroll 3
    for (int i = 0; i < R; i++) {
      const __m512i upper = _mm512_set1_epi32(four_bytes(digits + 2 * i * BLOCK + s));
      const __m512i lower = _mm512_set1_epi32(four_bytes(digits + (2 * i + 1) * BLOCK + s));
#pragma GCC unroll 4
      for (int p = 0; p < 4; p++) {
        high[i][p] = _mm512_dpbusd_epi32(high[i][p], upper, four[p]);
        low[i][p] = _mm512_dpbusd_epi32(low[i][p], lower, four[p]);
      }
    }
  }
#pragma GCC unroll 3
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
      float* own = sums + i * depth + p * LANES;
      const __m512 upper = _mm512_cvtepi32_ps(high[i][p]), lower = _mm512_cvtepi32_ps(low[i][p]);
      const __m512 whole = _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0f), lower);
      _mm512_store_ps(own, _mm512_fmadd_ps(whole, _mm512_set1_ps(factors[i]), _mm512_load_ps(own)));
    }
}

// The same for any number of queries and for values of any depth; what comes on the road behind the block is asked for.
void add_codes(long queries, float* sums, long depth, const int8_t* digits, const float* factors, const int8_t* values,
               long row, long tokens, long width, const Road& road, long from) {
  for (long d = 0; d < width; d += LINE)
    for (long i = 0; i < queries; i += 3) {
      const auto some = queries - i == 1 ? add_some<1> : queries - i == 2 ? add_some<2> : add_some<3>;
      some(sums + i * depth + d, depth, digits + 2 * i * BLOCK, factors + i, values + d, row, tokens,
           bytes_inside(width - d), d + i ? nullptr : &road, from);
    }
}

// 64 sums in the order of `add_some` to the numbers that they are, as many as there are.
WITH_BF16 void finish(const float* sums, bf16* out, long left) {
  const __m512 a = _mm512_load_ps(sums), b = _mm512_load_ps(sums + 16);
  const __m512 c = _mm512_load_ps(sums + 32), d = _mm512_load_ps(sums + 48);
  const __m512 first = _mm512_shuffle_f32x4(a, b, 0x44), second = _mm512_shuffle_f32x4(c, d, 0x44);
  const __m512 third = _mm512_shuffle_f32x4(a, b, 0xee), fourth = _mm512_shuffle_f32x4(c, d, 0xee);
  narrow(out, _mm512_shuffle_f32x4(first, second, 0x88));
  if (left > LANES) narrow(out + LANES, _mm512_shuffle_f32x4(first, second, 0xdd));
  if (left > 2 * LANES) narrow(out + 2 * LANES, _mm512_shuffle_f32x4(third, fourth, 0x88));
  if (left > 3 * LANES) narrow(out + 3 * LANES, _mm512_shuffle_f32x4(third, fourth, 0xdd));
}

}  // namespace

WITH_BF16 void encode_row(const bf16* x, long width, int8_t* codes, bf16* scale) {
  __m512 most = _mm512_setzero_ps(), none = most;
  for (long d = 0; d < width; d += LANES) {
    const __m512 own = widen(x + d);
    most = _mm512_max_ps(most, magnitude(own));
    none = _mm512_fmadd_ps(own, _mm512_setzero_ps(), none);
  }
  const float highest = _mm512_reduce_max_ps(most), least = highest > LEAST ? highest : LEAST;
  bf16 rounded[LANES];
  narrow(rounded, _mm512_set1_ps(least / 127.0f + _mm512_reduce_add_ps(none)));
  *scale = rounded[0];
  const __m512 step = widen(rounded);
  for (long d = 0; d < width; d += LANES)
    _mm_storeu_si128((__m128i*)(codes + d), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_div_ps(widen(x + d), step))));
}

WITH_BF16 void attend_codes(const bf16* q, const Codes& keys, const Codes& values, long count, const int8_t* following,
                            bf16* out, long share, long width, long split, long depth, float scale, float cap, Room& room) {
  const long padded = (count + LANES - 1) / LANES * LANES, deep = lines(depth) * LINE;
  const long first = lines(split) * LINE, second = lines(width - split) * LINE;
  float *scores = room.scores(share * padded), *sums = room.sums(share * deep), *factors = room.factors(share);
  Part* parts = room.parts(2 * share);
  const Road over_keys{keys.codes, keys.row, width, count, values.codes, values.row, depth};
  const Road over_values{values.codes, values.row, depth, count, following, keys.row, width};
  const long asked = 2 * share * (first + second), laid = LANES * (first + second);
  int8_t *digits = room.digits(asked + laid + 2 * share * BLOCK), *turned = digits + asked, *shared = turned + laid;
  for (long i = 0; i < share; i++) {
    int8_t *own = digits + 2 * i * first, *behind = digits + 2 * share * first + 2 * i * second;
    parts[i] = split_query(q + i * width, split, own, own + first);
    parts[i].factor *= scale;
    if (second) {
      parts[share + i] = split_query(q + i * width + split, width - split, behind, behind + second);
      parts[share + i].factor *= scale;
    }
  }
  for (long s = 0; s < count; s += LANES) {
    const long left = count - s < LANES ? count - s : LANES;
    const __mmask16 held = inside(left);
    over_keys.ask(s, s + LANES);
    const int8_t* rows = keys.codes + s * keys.row;
    turn_keys(rows, keys.row, split, left, turned);
    score_codes(share, turned, first / TOGETHER, digits, first, parts, keys.scales + s, held, scores + s, padded,
                false);
    if (!second) continue;
    turn_keys(rows + split, keys.row, width - split, left, turned + LANES * first);
    score_codes(share, turned + LANES * first, second / TOGETHER, digits + 2 * share * first, second, parts + share,
                keys.behind + s, held, scores + s, padded, true);
  }
  for (long i = 0; i < share; i++) {
    if (cap > 0)
      for (long s = 0; s < count; s++) scores[i * padded + s] = cap * tanhf(scores[i * padded + s] / cap);
    softmax(scores + i * padded, count);
  }
  for (long i = 0; i < share * deep; i++) sums[i] = 0;
  for (long s = 0; s < count; s += BLOCK) {
    const long tokens = count - s < BLOCK ? count - s : BLOCK;
    for (long i = 0; i < share; i++)
      factors[i] = split_shares(scores + i * padded + s, values.scales + s, tokens, shared + 2 * i * BLOCK,
                                shared + (2 * i + 1) * BLOCK);
    add_codes(share, sums, deep, shared, factors, values.codes + s * values.row, values.row, tokens, depth,
              over_values, s);
  }
  for (long i = 0; i < share; i++)
    for (long d = 0; d < depth; d += LINE) finish(sums + i * deep + d, out + i * depth + d, depth - d);
}

extern "C" {

// As `attend_one`, over codes: of codes and of scales a text, a head and a token are so many bytes or numbers apart. A key's
// numbers from `split` on have scales of their own (`behind`, which lie like the others); `split` is the width if none do.
WITH_BF16 void attend_one_codes(const bf16* q, const int8_t* key, const bf16* key_scales, const bf16* behind,
                                const int8_t* value, const bf16* value_scales, const int64_t* strides,
                                const int64_t* firsts, const int64_t* lasts, bf16* out, long texts, long kv_heads,
                                long share, long width, long split, long depth, float scale, float cap) {
  const long even = texts * kv_heads / (TURNS_A_THREAD * omp_get_max_threads()), turn = even < 1 ? 1 : even;
  const int64_t *of_keys = strides, *of_key_scales = strides + 3, *of_values = strides + 5, *of_value_scales = strides + 8;
#pragma omp parallel
  {
    Room room;
#pragma omp for schedule(dynamic, turn) collapse(2)
    for (long b = 0; b < texts; b++)
      for (long h = 0; h < kv_heads; h++) {
        const long place = b * of_key_scales[0] + h * of_key_scales[1] + firsts[b];
        const Codes keys = {key + b * of_keys[0] + h * of_keys[1] + firsts[b] * of_keys[2], of_keys[2], key_scales + place,
                            behind + place};
        const Codes values = {value + b * of_values[0] + h * of_values[1] + firsts[b] * of_values[2], of_values[2],
                              value_scales + b * of_value_scales[0] + h * of_value_scales[1] + firsts[b], nullptr};
        const long row = (b * kv_heads + h) * share;
        const int8_t* following = h + 1 < kv_heads  ? keys.codes + of_keys[1]
                                  : b + 1 < texts ? key + (b + 1) * of_keys[0] + firsts[b + 1] * of_keys[2]
                                                  : nullptr;
        attend_codes(q + row * width, keys, values, lasts[b] - firsts[b], following, out + row * depth, share, width, split,
                     depth, scale, cap, room);
      }
  }
}

}  // extern "C"
