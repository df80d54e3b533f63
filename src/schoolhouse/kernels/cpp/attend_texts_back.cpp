// Attention within texts, on the way back: scores once more, and the gradients of queries, keys and values.
//
// One thread takes all texts of one leader and one key head, so that the sums of the keys' gradients need no other and
// have the same bits with any number of threads. As on the way there keys are rows and queries are columns.
// Source: arXiv 2307.08691, algorithm 2, but with blocks of queries outside.

#include "texts.h"

namespace {

struct Backward {
  Tokens q, k, v, grad, out;
  const Text* texts;
  Shape shape;
  const float* logs;
  bf16 *to_q, *to_k, *to_v;
};

// Keys and values of a leader's texts with the sums of their gradients, and one block of queries.
struct Hold {
  bf16 *keys, *keys_turned, *values, *query_columns, *query_pairs, *grad_columns, *grad_pairs, *shares, *pulls, *pull_pairs;
  float *to_keys, *to_values, *to_queries, *scores, *slopes, *logs, *inner, *ones;
};

long room_of(const Backward& b, long keys) {
  const long wide = whole(b.q.width), deep = whole(b.v.width);
  return 2 * (keys * (2 * wide + deep) + 2 * QUERIES * (wide + deep) + QUERIES * DEEP * (2 + STRIPS)) +
         4 * (keys * (wide + deep) + QUERIES * (wide + 2 * DEEP + 3)) + 64 * 18;
}

Hold hold_in(Room& room, const Backward& b, long keys) {
  const long wide = whole(b.q.width), deep = whole(b.v.width);
  room.drop();
  Hold hold;
  hold.keys = room.take<bf16>(keys * wide);
  hold.keys_turned = room.take<bf16>(keys * wide);
  hold.values = room.take<bf16>(keys * deep);
  hold.query_columns = room.take<bf16>(QUERIES * wide);
  hold.query_pairs = room.take<bf16>(QUERIES * wide);
  hold.grad_columns = room.take<bf16>(QUERIES * deep);
  hold.grad_pairs = room.take<bf16>(QUERIES * deep);
  hold.shares = room.take<bf16>(QUERIES * DEEP);
  hold.pulls = room.take<bf16>(QUERIES * DEEP);
  hold.pull_pairs = room.take<bf16>(QUERIES * DEEP * STRIPS);
  hold.to_keys = room.take<float>(keys * wide);
  hold.to_values = room.take<float>(keys * deep);
  hold.to_queries = room.take<float>(QUERIES * wide);
  hold.scores = room.take<float>(QUERIES * DEEP);
  hold.slopes = room.take<float>(QUERIES * DEEP);
  hold.logs = room.take<float>(QUERIES);
  hold.inner = room.take<float>(QUERIES);
  hold.ones = room.take<float>(QUERIES);
  for (long i = 0; i < keys * wide; i++) hold.to_keys[i] = 0;
  for (long i = 0; i < keys * deep; i++) hold.to_values[i] = 0;
  for (long i = 0; i < QUERIES; i++) hold.ones[i] = 1;
  return hold;
}

// The sum of the products of two rows.
WITH_BF16 float inner_product(const bf16* a, const bf16* b, long width) {
  __m512 sum = _mm512_setzero_ps();
  for (long d = 0; d < width; d += LANES) {
    const __mmask16 inside = first_of_16(width - d);
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, a + d));
    const __m512i y = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, b + d));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// A block of queries of one head, as its products want them.
void lay_block(const Backward& b, long first, long count, long head, Hold& hold) {
  const RowsOf q = rows_of(b.q, first, count, head), grad = rows_of(b.grad, first, count, head);
  const RowsOf out = rows_of(b.out, first, count, head);
  lay_columns(q, QUERIES, hold.query_columns);
  lay_pairs(q, hold.query_pairs);
  lay_columns(grad, QUERIES, hold.grad_columns);
  lay_pairs(grad, hold.grad_pairs);
  for (long i = 0; i < whole(count); i++) {
    const bool real = i < count;
    hold.logs[i] = real ? b.logs[head * b.shape.tokens + first + i] : 0;
    hold.inner[i] = real ? inner_product(grad.at + i * grad.row, out.at + i * out.row, out.width) : 0;
  }
}

// Scores and slopes of one strip with 16 queries to shares and pulls, the gradients of the scores.
WITH_BF16 void take_pulls(const Strip& strip, float scale, long query, long column, bf16* pairs, Hold& hold) {
  const __m512 factor = _mm512_set1_ps(scale * 1.44269504f), logs = _mm512_load_ps(hold.logs + column);
  const __m512 inner = _mm512_load_ps(hold.inner + column);
  const bool all = seen_wholly(strip, query);
  for (long i = 0; i < DEEP; i += 2) {
    __m512 share[2], pull[2];
    for (long r = 0; r < 2; r++) {
      const long at = (i + r) * QUERIES + column;
      share[r] = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(hold.scores + at), factor, logs));
      if (!all) share[r] = _mm512_maskz_mov_ps(seen(strip, i + r, query), share[r]);
      pull[r] = _mm512_mul_ps(share[r], _mm512_sub_ps(_mm512_load_ps(hold.slopes + at), inner));
      narrow(hold.shares + at, share[r]);
      narrow(hold.pulls + at, pull[r]);
    }
    _mm512_store_si512(pairs + i * QUERIES + column * BOTH, pairs_of(pull[0], pull[1]));
  }
}

// What one strip and a block of queries give to each other, but for the queries' own gradients.
void strip_back(const Backward& b, const Strip& strip, long block, long columns, bf16* pairs, Hold& hold) {
  const long wide = whole(b.q.width), deep = whole(b.v.width), from = first_column(strip, block), steps = (columns - from) / DEEP;
  multiply({hold.keys + strip.place * wide, wide, DEEP}, {hold.query_columns + from * BOTH, QUERIES * BOTH}, DEEP,
           columns - from, wide / DEEP, hold.scores + from, QUERIES, false);
  multiply({hold.values + strip.place * deep, deep, DEEP}, {hold.grad_columns + from * BOTH, QUERIES * BOTH}, DEEP,
           columns - from, deep / DEEP, hold.slopes + from, QUERIES, false);
  for (long column = from; column < columns; column += LANES)
    take_pulls(strip, b.shape.scale, block + column, column, pairs, hold);
  multiply({hold.shares + from, QUERIES, DEEP}, {hold.grad_pairs + from * deep, deep * BOTH}, DEEP, deep, steps,
           hold.to_values + strip.place * deep, deep, true);
  multiply({hold.pulls + from, QUERIES, DEEP}, {hold.query_pairs + from * wide, wide * BOTH}, DEEP, wide, steps,
           hold.to_keys + strip.place * wide, wide, true);
}

void block_back(const Backward& b, const Text& text, const std::vector<Strip>& seen, long block, long count, long head,
                Hold& hold) {
  const long wide = whole(b.q.width), columns = whole(count), first = text.query + block, heads = b.shape.heads * b.shape.share;
  lay_block(b, first, count, head, hold);
  for (long i = 0; i < wide * QUERIES; i++) hold.to_queries[i] = 0;
  const long all = strips_of(seen.data(), seen.size(), block, columns - 1);
  for (long s = 0; s < all;) {
    const Strip* strips = seen.data() + s;
    long here = 1;  // strips that lie side by side
    while (here < smaller(STRIPS, all - s) && strips[here].place == strips[here - 1].place + DEEP) here++;
    for (long i = 0; i < here; i++)
      strip_back(b, strips[i], block, columns, hold.pull_pairs + i * DEEP * QUERIES, hold);
    for (long column = 0; column < columns; column += DEEP) {
      const long visible = strips_of(strips, here, block, column);
      multiply({hold.keys_turned + strips[0].place * wide, DEEP, wide * DEEP}, {hold.pull_pairs + column * BOTH, QUERIES * BOTH},
               wide, DEEP, visible, hold.to_queries + column, QUERIES, true);
    }
    s += here;
  }
  write_turned(hold.to_queries, QUERIES, hold.ones, b.shape.scale, b.to_q + (first * heads + head) * b.q.width,
               heads * b.q.width, count, b.q.width);
}

// Texts `first` to before `last`, all of one leader, and one key head.
void group_back(const Backward& b, long first, long last, long key_head, Room& room) {
  const long wide = whole(b.q.width), deep = whole(b.v.width);
  std::vector<long> places;
  long keys = 0;
  for (long t = first; t < last; t++) places.push_back(keys), keys += whole(b.texts[t].keys);
  Hold hold = hold_in(room, b, keys);
  for (long t = first; t < last; t++) {
    const long place = places[t - first];
    const RowsOf k = rows_of(b.k, b.texts[t].key, b.texts[t].keys, key_head);
    lay_rows(k, hold.keys + place * wide);
    lay_turned(k, hold.keys_turned + place * wide);
    lay_rows(rows_of(b.v, b.texts[t].key, b.texts[t].keys, key_head), hold.values + place * deep);
  }
  for (long t = first; t < last; t++) {
    const Text& text = b.texts[t];
    std::vector<Strip> strips;
    if (t != first) add_strips(strips, 0, b.texts[first].keys, false);
    add_strips(strips, places[t - first], text.keys, true);
    for (long head = key_head * b.shape.share; head < (key_head + 1) * b.shape.share; head++)
      for (long block = 0; block < text.queries; block += QUERIES)
        block_back(b, text, strips, block, smaller(QUERIES, text.queries - block), head, hold);
  }
  for (long t = first; t < last; t++) {
    const Text& text = b.texts[t];
    const long place = places[t - first], row = text.key * b.shape.heads + key_head;
    write_rows(hold.to_keys + place * wide, b.shape.scale, b.to_k + row * b.k.width, b.shape.heads * b.k.width, text.keys,
               b.k.width);
    write_rows(hold.to_values + place * deep, 1.0f, b.to_v + row * b.v.width, b.shape.heads * b.v.width, text.keys,
               b.v.width);
  }
}

}  // namespace

extern "C" {

// The gradients of `attend_texts`: grad as its out, to_q, to_k and to_v end to end in the shapes of q, k and v. Texts of
// one leader follow one another, the leader first.
void attend_texts_back(const bf16* q, long q_row, long q_head, const bf16* k, long k_row, long k_head, const bf16* v,
                       long v_row, long v_head, const bf16* grad, long grad_row, long grad_head, const int64_t* table,
                       long count, const bf16* out, const float* logs, bf16* to_q, bf16* to_k, bf16* to_v, long tokens,
                       long heads, long share, long width, long depth, float scale) {
  const Backward b = {{q, q_row, q_head, width}, {k, k_row, k_head, width}, {v, v_row, v_head, depth},
                      {grad, grad_row, grad_head, depth}, {out, heads * share * depth, depth, depth},
                      (const Text*)table, {tokens, heads, share, scale}, logs, to_q, to_k, to_v};
  std::vector<long> groups;
  long most = 0, keys = 0;
  for (long t = 0; t < count; t++) {
    if (b.texts[t].leader == t) groups.push_back(t), keys = 0;
    keys += whole(b.texts[t].keys);
    if (keys > most) most = keys;
  }
  const long turns = groups.size() * heads;
  groups.push_back(count);
#pragma omp parallel
  {
    Room room(room_of(b, most));
    if (tiles_allowed) open_tiles();
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < turns; i++) group_back(b, groups[i / heads], groups[i / heads + 1], i % heads, room);
    if (tiles_allowed) close_tiles();
  }
}

}  // extern "C"
