// All layers of a decoder for the new tokens of each text, within one parallel region: with few texts, going back to Python
// between two operations costs as much as the operations do.
//
// The decoder is Llama's: norm, grouped-query attention with rotary halves, norm, gated feed-forward. Every number is
// rounded where the operations one by one would round it.

#include <omp.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "attention.h"
#include "layers.h"

namespace {

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
    const long place = b * by_text + h * by_head, own_scales = b * strides[3] + h * strides[4];
    const long after = h + 1 < kv_heads ? place + by_head : b + 1 < texts ? (b + 1) * by_text : -1;
    for (long t = 0; t < tokens; t++) {
      const long last = lengths[b] + t, next = t + 1 < tokens ? -1 : after;
      keep(layer, b, h, t);
      if (layer.keys.scales) {
        const bf16 *key_scales = layer.keys.scales + own_scales, *value_scales = layer.values.scales + own_scales;
        attend_codes(queries(b, h, t), {layer.keys.codes(place), by_token, key_scales, nullptr},
                     {layer.values.codes(place), by_token, value_scales, nullptr}, last + 1,
                     next < 0 ? nullptr : layer.keys.codes(next), out(b, h, t), share, size, size, size, scale, 0.0f, room);
      } else {
        attend_rows(queries(b, h, t), layer.keys.numbers(place), by_token, layer.values.numbers(place), by_token, last + 1,
                    next < 0 ? nullptr : layer.keys.numbers(next), out(b, h, t), share, size, size, scale, 0.0f, room);
      }
    }
  }

  // Turns a new token's queries and key, and puts key and value into the cache.
  WITH_BF16 void keep(const Layer& layer, long b, long h, long t) const {
    const long fresh = b * strides[0] + h * strides[1] + (lengths[b] + t) * strides[2], r = b * tokens + t;
    const long place = b * strides[3] + h * strides[4] + lengths[b] + t;
    bf16 *own = row(b, t), *key = own + (heads + h) * size, *value = own + (heads + kv_heads + h) * size;
    const bf16 *c = cosine + r * size / 2, *s = sine + r * size / 2;
    bf16* turned = queries(b, h, t);
    for (long i = 0; i < heads / kv_heads; i++) turn_head(turned + i * size, c, s, turned + i * size, size / 2);
    if (layer.keys.scales) {
      turn_head(key, c, s, key, size / 2);
      encode_row(key, size, layer.keys.codes(fresh), layer.keys.scales + place);
      encode_row(value, size, layer.values.codes(fresh), layer.values.scales + place);
    } else {
      turn_head(key, c, s, layer.keys.numbers(fresh), size / 2);
      memcpy(layer.values.numbers(fresh), value, size * sizeof(bf16));
    }
  }

  // The same in turns of a stretch, for few texts of which one at least is long: `parts` holds those of each text and head,
  // `most` of them. All threads of a region call it.
  WITH_BF16 void look_by_stretches(const Layer& layer, float* parts, long most, Room& room) const {
    const long share = heads / kv_heads, by_token = strides[2], each = stretch_size(share, size);
#pragma omp for schedule(static) collapse(2)
    for (long b = 0; b < texts; b++)
      for (long h = 0; h < kv_heads; h++) keep(layer, b, h, 0);
#pragma omp for schedule(dynamic, 1) collapse(3)
    for (long b = 0; b < texts; b++)
      for (long h = 0; h < kv_heads; h++)
        for (long p = 0; p < most; p++) {
          const long count = lengths[b] + 1, from = p * STRETCH, left = count - from < STRETCH ? count - from : STRETCH;
          const long place = b * strides[0] + h * strides[1] + from * by_token;
          const bf16 *keys = layer.keys.numbers(place), *values = layer.values.numbers(place);
          if (left <= 0) continue;
          if (count <= STRETCH)
            attend_rows(queries(b, h, 0), keys, by_token, values, by_token, count, nullptr, out(b, h, 0), share, size, size,
                        scale, 0.0f, room);
          else
            attend_stretch(queries(b, h, 0), keys, by_token, values, by_token, left, nullptr,
                           parts + ((b * kv_heads + h) * most + p) * each, share, size, size, scale, 0.0f, room);
        }
#pragma omp for schedule(static) collapse(2)
    for (long b = 0; b < texts; b++)
      for (long h = 0; h < kv_heads; h++)
        if (lengths[b] + 1 > STRETCH)
          join_stretches(parts + (b * kv_heads + h) * most * each, stretches(lengths[b] + 1), share, size, out(b, h, 0));
  }

 private:
  bf16* row(long b, long t) const { return projected + (b * tokens + t) * (heads + 2 * kv_heads) * size; }
  bf16* queries(long b, long h, long t) const { return row(b, t) + h * (heads / kv_heads) * size; }
  bf16* out(long b, long h, long t) const { return seen + ((b * tokens + t) * heads + h * (heads / kv_heads)) * size; }
};

}  // namespace

extern "C" {

// x (texts, tokens, width) becomes the hidden states behind the last layer, not yet normed. layers: 6 + 7 * 6 words each.
// cosine and sine: (texts, tokens, size / 2). lengths: tokens that each text holds before these. strides: from one text,
// head and token of the cache to the next, and of its scales from one text and head to the next. scratch: for as many rows
// as tokens of all texts, filled up to 32, a row's normed state, projections, heads, both gates and two sums with the
// stream, and behind them what the widest product lays out.
WITH_BF16 void decode_layers(const int64_t* layers, long count, bf16* x, const bf16* cosine, const bf16* sine,
                             const int64_t* lengths, const int64_t* strides, long texts, long tokens, long heads,
                             long kv_heads, long size, long width, long inner, float scale, float eps, bf16* scratch) {
  const long all = texts * tokens, rows = (all + ROOM - 1) / ROOM * ROOM;
  const long whole = (heads + 2 * kv_heads) * size;
  bf16 *normed = scratch, *projected = normed + rows * width, *seen = projected + rows * whole;
  bf16 *gate = seen + rows * heads * size, *up = gate + rows * inner, *mixed = up + rows * inner;
  bf16 *fed = mixed + rows * width, *laid = fed + rows * width;
  const long even = texts * kv_heads / (TURNS_A_THREAD * omp_get_max_threads()), turn = even < 1 ? 1 : even;
  const Looking looking{strides, texts, tokens, heads, kv_heads, size, scale, cosine, sine, lengths, projected, seen};
  const long most = stretches(*std::max_element(lengths, lengths + texts) + 1);
  const bool shared = most > 1 && tokens == 1 && texts * kv_heads < TURNS_A_THREAD * omp_get_max_threads();
  const bool by_parts = shared && !Layer(layers, 0).keys.scales;
  std::vector<float> parts(by_parts ? texts * kv_heads * most * stretch_size(heads / kv_heads, size) : 0);
  const auto layer_at = [=](long l) { return Layer(layers, l); };
#pragma omp parallel
  {
    Room room;
    Stream stream(x, normed, all, width, eps);
    stream.add(nullptr, layer_at(0).before);
    for (long l = 0; l < count; l++) {
      const Layer layer = layer_at(l);
      const Matrix* m = layer.matrix;
      multiply_rows(stream.normed, width, m[QUERY], projected, whole, all, laid, true);
      multiply_rows(stream.normed, width, m[KEY], projected + heads * size, whole, all, laid, true);
      multiply_rows(stream.normed, width, m[VALUE], projected + (heads + kv_heads) * size, whole, all, laid, true);
#pragma omp barrier
      if (parts.empty()) {
#pragma omp for schedule(dynamic, turn) collapse(2)
        for (long b = 0; b < texts; b++)
          for (long h = 0; h < kv_heads; h++) looking.look(layer, b, h, room);
      } else {
        looking.look_by_stretches(layer, parts.data(), most, room);
      }
      multiply_rows(seen, heads * size, m[OUT], mixed, width, all, laid, true);
#pragma omp barrier
      stream.add(mixed, layer.between);
      multiply_rows(stream.normed, width, m[GATE], gate, inner, all, laid, true);
      multiply_rows(stream.normed, width, m[UP], up, inner, all, laid, true);
#pragma omp barrier
      multiply_rows(stream.gated(gate, up, all, inner), inner, m[DOWN], fed, width, all, laid, true);
#pragma omp barrier
      stream.add(fed, l + 1 < count ? layer_at(l + 1).before : nullptr);
    }
    stream.leave();
  }
}

}  // extern "C"
