// Attention of heads that all look at the same latents, which are keys and, but for their ends, values, by tiles: with one
// query a head it is a product of matrices where it would be one of a row each with grouped queries.

#pragma once

#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include "attention.h"
#include "packed.h"
#include "tiles.h"

namespace {

constexpr long ABREAST = TILE;     // heads that look at a text's latents together
constexpr long ASKED = DEEP / 4;   // rows asked for while the scores, and while the shares of 32 tokens are made
constexpr long VALUES = 8 * DEEP;  // tokens whose values are laid out at once

// Rows that come next, asked for a few at a time: many at once would wait for one another.
struct Following {
  const bf16* rows;  // null: none
  long stride, left, width;

  void ask(long count) {
    for (; rows && count && left; count--, left--, rows += stride)
      for (long d = 0; d < width; d += LINE_NUMBERS) __builtin_prefetch(rows + d, 0, 2);
  }
};

// One thread's room for it. Sums over tokens are made in their order, 32 at once: what lies behind a text counts nothing.
class Latents {
 public:
  ~Latents() { free(room_); }

  static bool takes(long width, long depth) {
    return tiles_allowed && width % 2 == 0 && width >= DEEP && depth % DEEP == 0;
  }

  // Numbers of what is left of a stretch: of 16 heads the highest score, to base 2, the sum of shares, and sums of values.
  static long part_size(long depth) { return (2 + depth) * TILE; }

  // q (heads, width), at most 16, over `count` latents (count, width), rows so far apart, to out (heads, depth), in stretches
  // if there are many. Latents are read up to a multiple of 32. following: others that come next, to be asked for, or null.
  WITH_TILES void look(const bf16* q, long heads, const bf16* held, long stride, long count, const bf16* following,
                       bf16* out, long width, long depth, float scale) {
    const long all = stretches(count), size = part_size(depth);
    float* parts = parts_(all * size);
    for (long p = 0; p < all; p++) {
      const bf16* own = held + p * STRETCH * stride;
      stretch(q, heads, own, stride, std::min(count - p * STRETCH, STRETCH), p + 1 < all ? own + STRETCH * stride : following,
              parts + p * size, width, depth, scale);
    }
    join(parts, all, heads, depth, out);
  }

  // The same over one stretch, to a part.
  WITH_TILES void stretch(const bf16* q, long heads, const bf16* held, long stride, long count, const bf16* following,
                          float* part, long width, long depth, float scale) {
    const long padded = up(count, DEEP) * DEEP;
    lay_room(padded, width, depth);
    following_ = {following, stride, padded, width};
    score(q, heads, held, stride, padded, width);
    take_shares(count, scale, part);
    sums_ = part + 2 * TILE;
    for (long s = 0; s < padded; s += VALUES) add_values(held, stride, s, std::min(padded - s, VALUES), count, depth);
  }

  // All parts of a text to out (heads, depth).
  WITH_BF16 static void join(const float* parts, long count, long heads, long depth, bf16* out) {
    const long size = part_size(depth);
    __m512 highest = _mm512_loadu_ps(parts), total = _mm512_setzero_ps();
    for (long p = 1; p < count; p++) highest = _mm512_max_ps(highest, _mm512_loadu_ps(parts + p * size));
    for (long p = 0; p < count; p++)
      total = _mm512_fmadd_ps(weight_of(parts + p * size, highest), _mm512_loadu_ps(parts + p * size + TILE), total);
    alignas(64) float weights[TILE];
    std::vector<float> sums(heads * depth);
    for (long p = 0; p < count; p++) {
      _mm512_store_ps(weights, _mm512_div_ps(weight_of(parts + p * size, highest), total));
      for (long h = 0; h < heads; h++)
        for (long d = 0; d < depth; d += DEEP) {
          float* sum = sums.data() + h * depth + d;
          const float* own = parts + p * size + 2 * TILE + d * TILE + h * LANES;
          __m512 first, second;
          in_turns(_mm512_loadu_ps(own), _mm512_loadu_ps(own + TILE * TILE), first, second);
          const __m512 weight = _mm512_set1_ps(weights[h]);
          _mm512_storeu_ps(sum, _mm512_fmadd_ps(weight, first, _mm512_loadu_ps(sum)));
          _mm512_storeu_ps(sum + LANES, _mm512_fmadd_ps(weight, second, _mm512_loadu_ps(sum + LANES)));
        }
    }
    for (long i = 0; i < heads * depth; i += LANES) narrow(out + i, _mm512_loadu_ps(sums.data() + i));
  }

 private:
  // What a part counts beside that with the highest scores.
  WITH_BF16 static __m512 weight_of(const float* part, __m512 highest) {
    return power_of_two(_mm512_sub_ps(_mm512_loadu_ps(part), highest));
  }

  void lay_room(long padded, long width, long depth) {
    const long wide = up(width, DEEP) * DEEP;
    const long bytes = padded * TILE * (sizeof(float) + sizeof(bf16)) + VALUES * depth * sizeof(bf16) +
                       wide * TILE * sizeof(bf16);
    if (bytes > most_) {
      free(room_);
      most_ = 2 * bytes;
      room_ = (char*)aligned_alloc(64, up(most_, 64) * 64);
    }
    scores_ = (float*)room_;
    shares_ = (bf16*)(scores_ + padded * TILE), queries_ = shares_ + padded * TILE, values_ = queries_ + wide * TILE;
  }

  // Scores (tokens, 16). Where the width is no multiple of 32, the last step looks at some numbers again, times 0.
  WITH_TILES void score(const bf16* q, long heads, const bf16* held, long stride, long padded, long width) {
    const long steps = up(width, DEEP);
    const auto first_of = [=](long step) { return (step + 1) * DEEP <= width ? step * DEEP : width - DEEP; };
    for (long j = 0; j < steps; j++) {
      const __mmask32 fresh = ~0u << (j * DEEP - first_of(j));
      __m512i x[TILE];
      for (long i = 0; i < TILE; i++)
        x[i] = i < heads ? _mm512_maskz_loadu_epi16(fresh, q + i * width + first_of(j)) : _mm512_setzero_si512();
      turn_pairs(x);
      for (long i = 0; i < TILE; i++) _mm512_store_si512((__m512i*)(queries_ + j * TILE_NUMBERS + i * DEEP), x[i]);
    }
    for (long s = 0; s < padded; s += DEEP) {
      following_.ask(ASKED);
      _tile_zero(0);
      _tile_zero(1);
      for (long j = 0; j < steps; j++) {
        const bf16* keys = held + s * stride + first_of(j);
        _tile_loadd(4, keys, stride * sizeof(bf16));
        _tile_loadd(6, queries_ + j * TILE_NUMBERS, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, keys + TILE * stride, stride * sizeof(bf16));
        _tile_dpbf16ps(1, 5, 6);
      }
      _tile_stored(0, scores_ + s * TILE, 64);
      _tile_stored(1, scores_ + (s + TILE) * TILE, 64);
    }
  }

  // Scores to shares, each the highest one's part, as tiles of 16 heads and 32 tokens; the highest scores and the sums of
  // shares go to a part.
  WITH_BF16 void take_shares(long count, float scale, float* part) {
    constexpr long APART = 4;
    __m512 highest[APART], total[APART];
    for (long i = 0; i < APART; i++) highest[i] = _mm512_set1_ps(-INFINITY), total[i] = _mm512_setzero_ps();
    for (long s = 0; s < count; s++)
      highest[s % APART] = _mm512_max_ps(highest[s % APART], _mm512_load_ps(scores_ + s * TILE));
    const __m512 most = _mm512_max_ps(_mm512_max_ps(highest[0], highest[1]), _mm512_max_ps(highest[2], highest[3]));
    const __m512 by = _mm512_set1_ps(scale * 1.44269504f), top = _mm512_mul_ps(most, by);
    for (long s = 0; s < count; s += DEEP) {
      following_.ask(ASKED);
      __m512i x[2][TILE];
      for (long i = 0; i < DEEP; i += APART)
#pragma GCC unroll 4
        for (long j = i; j < i + APART; j++) {
          __m512 e = _mm512_setzero_ps();
          if (s + j < count) e = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(scores_ + (s + j) * TILE), by, top));
          total[j % APART] = _mm512_add_ps(total[j % APART], e);
          x[j / TILE][j % TILE] = _mm512_castps_si512(e);
        }
      turn_pairs(x[0]);
      turn_pairs(x[1]);
      for (long h = 0; h < TILE; h++)
        _mm512_store_si512((__m512i*)(shares_ + s * TILE + h * DEEP),
                           (__m512i)_mm512_cvtne2ps_pbh(_mm512_castsi512_ps(x[1][h]), _mm512_castsi512_ps(x[0][h])));
    }
    _mm512_storeu_ps(part, top);
    _mm512_storeu_ps(part + TILE, _mm512_add_ps(_mm512_add_ps(total[0], total[1]), _mm512_add_ps(total[2], total[3])));
  }

  // Adds the values of `tokens` from `first` on, each times its shares.
  WITH_TILES void add_values(const bf16* held, long stride, long first, long tokens, long count, long depth) {
    for (long s = 0; s < tokens; s += 2) {
      const bf16* row = held + (first + s) * stride;
      const __mmask32 one = first + s < count ? ~0u : 0, two = first + s + 1 < count ? ~0u : 0;
      bf16* to = values_ + s / DEEP * DEEP * depth + s % DEEP / 2 * DEEP;
      following_.ask(1);
      for (long d = 0; d < depth; d += DEEP) {
        const __m512i low = _mm512_maskz_loadu_epi16(one, row + d), high = _mm512_maskz_loadu_epi16(two, row + stride + d);
        _mm512_store_si512((__m512i*)(to + d * DEEP), _mm512_unpacklo_epi16(low, high));
        _mm512_store_si512((__m512i*)(to + d * DEEP + TILE_NUMBERS), _mm512_unpackhi_epi16(low, high));
      }
    }
    for (long d = 0; d < depth; d += DEEP) {
      float *left = sums_ + d * TILE, *right = left + TILE * TILE;
      if (first == 0) {
        _tile_zero(0);
        _tile_zero(1);
      } else {
        _tile_loadd(0, left, 64);
        _tile_loadd(1, right, 64);
      }
      for (long s = 0; s < tokens; s += DEEP) {
        const bf16* own = values_ + s * depth + d * DEEP;
        _tile_loadd(4, shares_ + (first + s) * TILE, 64);
        _tile_loadd(6, own, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, own + TILE_NUMBERS, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, left, 64);
      _tile_stored(1, right, 64);
    }
  }

  char* room_ = nullptr;
  long most_ = 0;
  float *scores_, *sums_;
  bf16 *shares_, *queries_, *values_;
  Held<float> parts_;
  Following following_;
};

}  // namespace
