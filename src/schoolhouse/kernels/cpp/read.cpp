// All layers of a decoder for prompts that lie end to end, within one parallel region; see `decode.cpp`.

#include <algorithm>

#include "experts.h"
#include "layers.h"
#include "looks.h"

namespace {

constexpr long AT_ONCE = 512;  // rows of a feed-forward, which stay in the second cache meanwhile

// What all threads share of a layer's work. Of keys and values those of a token lie together.
struct Reading {
  long rows, known, heads, kv_heads, size, width, inner;
  const bf16 *cosine, *sine;  // of each row
  bf16 *queries, *seen, *mixed, *gates, *laid;

  // Queries, and new keys and values behind those that are known.
  void project(const Layer& layer, const bf16* normed) const {
    const long kv = kv_heads * size;
    multiply_rows(normed, width, layer.matrix[QUERY], queries, heads * size, rows, laid, true);
    multiply_rows(normed, width, layer.matrix[KEY], layer.keys.numbers(known * kv), kv, rows, laid, true);
    multiply_rows(normed, width, layer.matrix[VALUE], layer.values.numbers(known * kv), kv, rows, laid, true);
#pragma omp barrier
#pragma omp for schedule(static)
    for (long r = 0; r < rows; r++) {
      const bf16 *c = cosine + r * size / 2, *s = sine + r * size / 2;
      bf16 *query = queries + r * heads * size, *key = layer.keys.numbers((known + r) * kv);
      for (long h = 0; h < heads; h++) turn_head(query + h * size, c, s, query + h * size, size / 2);
      for (long h = 0; h < kv_heads; h++) turn_head(key + h * size, c, s, key + h * size, size / 2);
    }
  }

  // gate * sigmoid(gate) * up, and what becomes of it, of `count` rows.
  void feed(const Layer& layer, Stream& stream, long count) const {
    const Matrix* m = layer.matrix;
    if (m[GATE].bits < 16 || m[DOWN].bits < 16) return feed_codes(m, stream, count);
    Feed told = {};
    told.common = {(const bf16*)m[GATE].weight, (const bf16*)m[UP].weight, (const bf16*)m[DOWN].weight};
    told.common_inner = inner;
    for (long from = 0; from < count; from += AT_ONCE) {
      const long part = std::min(count - from, AT_ONCE);
      FeedForward forward(part, 0, width, 0, inner, gates);
      forward.run(told, stream.normed + from * width, nullptr, nullptr);
#pragma omp for schedule(static)
      for (long b = 0; b < part; b++) forward.row(b, mixed + (from + b) * width);
    }
  }

 private:
  // All rows at once: which way codes go hangs on how many there are.
  void feed_codes(const Matrix* m, Stream& stream, long count) const {
    bf16 *gate = gates, *up = gates + count * inner;
    multiply_rows(stream.normed, width, m[GATE], gate, inner, count, laid, true);
    multiply_rows(stream.normed, width, m[UP], up, inner, count, laid, true);
#pragma omp barrier
    multiply_rows(stream.gated(gate, up, count, inner), inner, m[DOWN], mixed, width, count, laid, true);
#pragma omp barrier
  }
};

}  // namespace

extern "C" {

// x (rows, width) becomes the hidden states behind the last layer, not yet normed: of all rows, or of `kept` ones, whose
// places rise, in front. layers: as `decode_layers` takes them, keys and values (known + rows, kv_heads, size), those that
// are known filled in. cosine and sine: (rows, size / 2). table: five numbers for each text, see `Text`. scratch: for as many
// rows, filled up to 32, a row's normed state, queries, heads and sum with the stream; then `feed_room` for both gates of as
// many or for what `FeedForward` wants for 512; then what the widest product lays out.
WITH_BF16 void read_layers(const int64_t* layers, long count, bf16* x, const bf16* cosine, const bf16* sine,
                           const int64_t* table, long texts, const int64_t* places, long kept, long rows, long known,
                           long heads, long kv_heads, long size, long width, long inner, float scale, float eps,
                           bf16* scratch, long feed_room) {
  const long filled = (rows + ROOM - 1) / ROOM * ROOM, kv = kv_heads * size;
  bf16 *normed = scratch, *queries = normed + filled * width, *seen = queries + filled * heads * size;
  bf16 *mixed = seen + filled * heads * size, *gates = mixed + filled * width, *laid = gates + feed_room;
  const Reading reading{rows, known, heads, kv_heads, size, width, inner, cosine, sine, queries, seen, mixed, gates, laid};
#pragma omp parallel
  {
    Stream stream(x, normed, rows, width, eps);
    stream.add(nullptr, Layer(layers, 0).before);
    for (long l = 0; l < count; l++) {
      const Layer layer(layers, l);
      const bool last = l + 1 == count, fewer = last && kept;
      reading.project(layer, stream.normed);
      const Looks looks = {{queries, heads * size, size, size}, {layer.keys.numbers(0), kv, size, size},
                           {layer.values.numbers(0), kv, size, size}, (const Text*)table,
                           {rows, kv_heads, heads / kv_heads, scale}, seen, nullptr};
      look_at_texts(looks, texts);
      multiply_rows(seen, heads * size, layer.matrix[OUT], mixed, width, rows, laid, true);
#pragma omp barrier
      if (fewer) {
#pragma omp single
        keep_rows(mixed, width, places, kept);
        stream.keep(places, kept);
      }
      stream.add(mixed, layer.between);
      reading.feed(layer, stream, fewer ? kept : rows);
      stream.add(mixed, last ? nullptr : Layer(layers, l + 1).before);
    }
    stream.leave();
  }
}

}  // extern "C"
