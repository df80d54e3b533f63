// All layers of a decoder for the new tokens of each text, within one parallel region: with few texts, going back to Python
// between two operations costs as much as the operations do.
//
// The decoder is Llama's: norm, grouped-query attention with rotary halves, norm, gated feed-forward. Every number is
// rounded where the operations one by one would round it.

#include <omp.h>
#include <string.h>

#include "attention.h"
#include "matrix.h"
#include "rows.h"

namespace {

constexpr long MATRICES = 7, WORDS = 6, FIRST = 6;  // of a layer; of a matrix; before the first one
constexpr long ROOM = 32;                           // rows that a product wants room for
constexpr long PART = 16;                           // registers of a gate that a thread takes at once
enum { QUERY, KEY, VALUE, OUT, GATE, UP, DOWN };

// Where keys or values of a layer lie: bf16 numbers, or int8 codes and their scales. Of scales those of a text and head lie
// together.
struct Store {
  void* rows;
  bf16* scales;

  bf16* numbers(long place) const { return (bf16*)rows + place; }
  int8_t* codes(long place) const { return (int8_t*)rows + place; }
};

// A layer: both norms, where its keys and values lie, and its matrices, each an address and what `Matrix` holds.
struct Layer {
  const bf16 *before, *between;
  Store keys, values;
  Matrix matrix[MATRICES];

  explicit Layer(const int64_t* words) {
    before = (const bf16*)words[0], between = (const bf16*)words[1];
    keys = {(void*)words[2], (bf16*)words[4]}, values = {(void*)words[3], (bf16*)words[5]};
    for (long i = 0; i < MATRICES; i++) {
      const int64_t* w = words + FIRST + i * WORDS;
      matrix[i] = {(const void*)w[0], (const void*)w[1], (long)w[2], (long)w[3], (long)w[4], (long)w[5]};
    }
  }
};

// Attention of one key head's queries for the new tokens of a text.
struct Looking {
  const int64_t* strides;  // of the cache
  long texts, tokens, heads, kv_heads, size;
  float scale;
  const bf16 *cosine, *sine;
  const int64_t* lengths;
  bf16 *projected, *seen;

  WITH_BF16 void look(const Layer& layer, long b, long h, Room& room) const {
    const long by_text = strides[0], by_head = strides[1], by_token = strides[2], share = heads / kv_heads;
    const long whole = (heads + 2 * kv_heads) * size, place = b * by_text + h * by_head;
    const long own_scales = b * strides[3] + h * strides[4];
    const long after = h + 1 < kv_heads ? place + by_head : b + 1 < texts ? (b + 1) * by_text : -1;
    for (long t = 0; t < tokens; t++) {
      const long r = b * tokens + t, last = lengths[b] + t, fresh = place + last * by_token;
      const long next = t + 1 < tokens ? -1 : after;
      bf16 *own = projected + r * whole, *queries = own + h * share * size, *out = seen + (r * heads + h * share) * size;
      bf16 *key = own + (heads + h) * size, *value = own + (heads + kv_heads + h) * size;
      const bf16 *c = cosine + r * size / 2, *s = sine + r * size / 2;
      for (long i = 0; i < share; i++) turn_head(queries + i * size, c, s, queries + i * size, size / 2);
      if (layer.keys.scales) {
        bf16 *key_scales = layer.keys.scales + own_scales, *value_scales = layer.values.scales + own_scales;
        turn_head(key, c, s, key, size / 2);
        encode_row(key, size, layer.keys.codes(fresh), key_scales + last);
        encode_row(value, size, layer.values.codes(fresh), value_scales + last);
        attend_codes(queries, {layer.keys.codes(place), by_token, key_scales, nullptr},
                     {layer.values.codes(place), by_token, value_scales, nullptr}, last + 1,
                     next < 0 ? nullptr : layer.keys.codes(next), out, share, size, size, size, scale, 0.0f, room);
      } else {
        turn_head(key, c, s, layer.keys.numbers(fresh), size / 2);
        memcpy(layer.values.numbers(fresh), value, size * sizeof(bf16));
        attend_rows(queries, layer.keys.numbers(place), by_token, layer.values.numbers(place), by_token, last + 1,
                    next < 0 ? nullptr : layer.keys.numbers(next), out, share, size, size, scale, 0.0f, room);
      }
    }
  }
};

}  // namespace

extern "C" {

// x (texts, tokens, width) becomes the hidden states behind the last layer, not yet normed. layers: 6 + 7 * 6 words each.
// cosine and sine: (texts, tokens, size / 2). lengths: tokens that each text holds before these. strides: from one text,
// head and token of the cache to the next, and of its scales from one text and head to the next. scratch: for as many rows
// as tokens of all texts, at least 32, a row's normed state, projections, heads and both gates, and behind them what the
// widest product lays out.
WITH_BF16 void decode_layers(const int64_t* layers, long count, bf16* x, const bf16* cosine, const bf16* sine,
                             const int64_t* lengths, const int64_t* strides, long texts, long tokens, long heads,
                             long kv_heads, long size, long width, long inner, float scale, float eps, bf16* scratch) {
  const long all = texts * tokens, rows = all < ROOM ? ROOM : all;
  const long whole = (heads + 2 * kv_heads) * size;
  bf16 *normed = scratch, *projected = normed + rows * width, *seen = projected + rows * (whole > width ? whole : width);
  bf16 *gate = seen + rows * heads * size, *up = gate + rows * inner, *laid = up + rows * inner;
  const long even = texts * kv_heads / (TURNS_A_THREAD * omp_get_max_threads()), turn = even < 1 ? 1 : even;
  const Looking looking{strides, texts, tokens, heads, kv_heads, size, scale, cosine, sine, lengths, projected, seen};
#pragma omp parallel
  {
    Room room;
    for (long l = 0; l < count; l++) {
      const Layer layer(layers + l * (FIRST + MATRICES * WORDS));
      const Matrix* m = layer.matrix;
      if (l == 0) {
#pragma omp for schedule(static)
        for (long b = 0; b < all; b++) norm_row(x + b * width, layer.before, normed + b * width, width, eps, 0.0f);
      }
      multiply_rows(normed, width, m[QUERY], projected, whole, all, laid);
      multiply_rows(normed, width, m[KEY], projected + heads * size, whole, all, laid);
      multiply_rows(normed, width, m[VALUE], projected + (heads + kv_heads) * size, whole, all, laid);
#pragma omp barrier
#pragma omp for schedule(dynamic, turn) collapse(2)
      for (long b = 0; b < texts; b++)
        for (long h = 0; h < kv_heads; h++) looking.look(layer, b, h, room);
      multiply_rows(seen, heads * size, m[OUT], projected, width, all, laid);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long b = 0; b < all; b++) {
        add_row(x + b * width, projected + b * width, width);
        norm_row(x + b * width, layer.between, normed + b * width, width, eps, 0.0f);
      }
      multiply_rows(normed, width, m[GATE], gate, inner, all, laid);
      multiply_rows(normed, width, m[UP], up, inner, all, laid);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long i = 0; i < all * inner; i += LANES * PART)
        gate_row(gate + i, up + i, gate + i, all * inner - i < LANES * PART ? all * inner - i : LANES * PART);
      multiply_rows(gate, inner, m[DOWN], projected, width, all, laid);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long b = 0; b < all; b++) {
        add_row(x + b * width, projected + b * width, width);
        if (l + 1 == count) continue;
        const bf16* next = (const bf16*)layers[(l + 1) * (FIRST + MATRICES * WORDS)];
        norm_row(x + b * width, next, normed + b * width, width, eps, 0.0f);
      }
    }
  }
}

}  // extern "C"
