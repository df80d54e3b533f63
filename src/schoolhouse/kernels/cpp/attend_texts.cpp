// Attention within texts, forward: blocks of queries over strips of keys, no scores kept.
//
// All is turned: a block of scores has keys as rows and queries as columns, so that a register holds sixteen queries and
// the softmax needs no sums across it. A query's highest score so far, the sum of its shares and its output change as
// the keys go by; its logarithm of the sum, to base 2, is kept for the way back.
// Sources: arXiv 2205.14135, algorithm 1; arXiv 2307.08691, section 3.1.

#include <math.h>
#include <omp.h>

#include <algorithm>

#include "along.h"
#include "texts.h"

namespace {

constexpr long CHAINS = 4;  // of highest scores, none of which waits for another
constexpr long ROUND = 4;  // strips of keys whose scores with 32 queries stay in the nearest cache
constexpr long BLOCKS = 4, SHARE = 4;  // blocks of queries of one turn, for which keys are laid out anew; turns of a thread

struct Turn {
  long text, first, last, head;
};

// 32 queries of a block from a column on, and some strips of keys that they see.
struct Round {
  long column;
  const Strip* strips;
  long count;
};

// What one thread holds: the keys and values of a turn, and one block of queries.
struct Hold {
  bf16 *keys, *values, *queries, *shares[2];
  float *scores[2], *out, *highest, *total;
  std::vector<Strip> strips;
  std::vector<Round> rounds;
};

long room_of(const Looks& f, long keys) {
  const long wide = whole(f.q.width), deep = whole(f.v.width);
  return 2 * (keys * (wide + deep) + wide * QUERIES + 2 * ROUND * DEEP * DEEP) +
         4 * (2 * ROUND * DEEP * DEEP + QUERIES * (deep + 2)) + 64 * 10;
}

void lay_keys(const Looks& f, const Text& text, long count, long head, bool own, long& place, Hold& hold) {
  lay_rows(rows_of(f.k, text.key, count, head), hold.keys + place * whole(f.k.width));
  lay_turned(rows_of(f.v, text.key, count, head), hold.values + place * whole(f.v.width));
  add_strips(hold.strips, place, count, own);
  place += whole(count);
}

// Scores of 16 queries with some strips to shares, as pairs of keys; what was summed before, which is the first of the
// products that come along, shrinks to the new highest.
WITH_TILES void take_shares(const Looks& f, const Strip* strips, long count, long block, long column, const float* all_scores,
                            bf16* all_shares, Hold& hold, Along& along) {
  const __m512 scale = _mm512_set1_ps(f.shape.scale * 1.44269504f);
  const __m512 before = _mm512_load_ps(hold.highest + column);
  const long query = block + column;
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (long s = 0; s < count; s++) {
    const float* scores = all_scores + s * DEEP * DEEP + column % DEEP;
    if (seen_wholly(strips[s], query)) {
      __m512 each[CHAINS];
#pragma GCC unroll 4
      for (long c = 0; c < CHAINS; c++) each[c] = most;
      for (long i = 0; i < DEEP; i += CHAINS)
#pragma GCC unroll 4
        for (long c = 0; c < CHAINS; c++) each[c] = _mm512_max_ps(each[c], _mm512_load_ps(scores + (i + c) * DEEP));
      most = _mm512_max_ps(_mm512_max_ps(each[0], each[1]), _mm512_max_ps(each[2], each[3]));
    } else
      for (long i = 0; i < DEEP; i++)
        most = _mm512_mask_max_ps(most, seen(strips[s], i, query), most, _mm512_load_ps(scores + i * DEEP));
  }
  const __m512 highest = _mm512_max_ps(before, _mm512_mul_ps(most, scale));
  const __m512 shrink = power_of_two(_mm512_sub_ps(before, highest));
  __m512 even = _mm512_mul_ps(_mm512_load_ps(hold.total + column), shrink), odd = _mm512_setzero_ps();
  for (long s = 0; s < count; s++) {
    const float* scores = all_scores + s * DEEP * DEEP + column % DEEP;
    bf16* shares = all_shares + s * DEEP * DEEP + column % DEEP * BOTH;
    const bool all = seen_wholly(strips[s], query);
    for (long i = 0; i < DEEP; i += 2) {
      __m512 a = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(scores + i * DEEP), scale, highest));
      __m512 b = power_of_two(_mm512_fmsub_ps(_mm512_load_ps(scores + (i + 1) * DEEP), scale, highest));
      if (!all) {
        a = _mm512_maskz_mov_ps(seen(strips[s], i, query), a);
        b = _mm512_maskz_mov_ps(seen(strips[s], i + 1, query), b);
      }
      even = _mm512_add_ps(even, a);
      odd = _mm512_add_ps(odd, b);
      _mm512_store_si512(shares + i * DEEP, pairs_of(a, b));
      along.turn();
    }
  }
  _mm512_store_ps(hold.highest + column, highest);
  _mm512_store_ps(hold.total + column, _mm512_add_ps(even, odd));
  if (_mm512_cmp_ps_mask(before, highest, _CMP_NEQ_UQ) == 0) return;
  along.until(1);
  for (long d = 0; d < whole(f.v.width); d++) {
    float* out = hold.out + d * QUERIES + column;
    _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), shrink));
  }
}

Task scores_of(const Looks& f, const Hold& hold, long number) {
  const Round& round = hold.rounds[number];
  const long wide = whole(f.q.width);
  return {{hold.keys + round.strips->place * wide, wide, DEEP}, {hold.queries + round.column * BOTH, QUERIES * BOTH},
          round.count * DEEP, wide / DEEP, hold.scores[number % 2], DEEP, false};
}

Task values_of(const Looks& f, const Hold& hold, long number) {
  const Round& round = hold.rounds[number];
  const long deep = whole(f.v.width);
  return {{hold.values + round.strips->place * deep, DEEP, deep * DEEP}, {hold.shares[number % 2], DEEP * BOTH}, deep,
          round.count, hold.out + round.column, QUERIES, true};
}

// A block of `count` queries of one head, the first of them number `block` of its text.
WITH_BF16 void forward_block(const Looks& f, const Text& text, long block, long count, long head, Hold& hold) {
  const long deep = whole(f.v.width), columns = whole(count), first = text.query + block;
  lay_columns(rows_of(f.q, first, count, head), QUERIES, hold.queries);
  for (long i = 0; i < columns; i++) hold.highest[i] = -1e30f, hold.total[i] = 0;
  for (long i = 0; i < deep * QUERIES; i++) hold.out[i] = 0;
  hold.rounds.clear();
  for (long column = 0; column < columns; column += DEEP) {
    const long all = strips_of(hold.strips.data(), hold.strips.size(), block, column);
    for (long s = 0; s < all; s += ROUND) hold.rounds.push_back({column, hold.strips.data() + s, smaller(all - s, ROUND)});
  }
  const long last = hold.rounds.size();
  for (long n = -1; n <= last; n++) {  // shares of a round, along with the values of the one before and the scores of the next
    Along along;
    if (n > 0) along.add(values_of(f, hold, n - 1));
    if (n + 1 < last) along.add(scores_of(f, hold, n + 1));
    if (n >= 0 && n < last) {
      const Round& round = hold.rounds[n];
      along.share_out(round.count * DEEP);
      for (long half = 0; half < DEEP; half += LANES)
        take_shares(f, round.strips, round.count, block, round.column + half, hold.scores[n % 2], hold.shares[n % 2], hold,
                    along);
    }
    along.finish();
  }
  for (long i = 0; i < count; i++) {
    if (f.logs) f.logs[head * f.shape.tokens + first + i] = hold.highest[i] + log2f(hold.total[i]);
    hold.total[i] = 1 / hold.total[i];
  }
  write_turned(hold.out, QUERIES, hold.total, 1.0f, f.out + (first * f.shape.heads * f.shape.share + head) * f.v.width,
               f.shape.heads * f.shape.share * f.v.width, count, f.v.width);
}

void forward_turn(const Looks& f, const Turn& turn, Room& room, Hold& hold) {
  const Text& text = f.texts[turn.text];
  const long wide = whole(f.q.width), deep = whole(f.v.width), before = text.leader == turn.text ? 0 : f.texts[text.leader].keys;
  const long keys = whole(before) + whole(turn.last);
  room.drop();
  hold.strips.clear();
  hold.keys = room.take<bf16>(keys * wide);
  hold.values = room.take<bf16>(keys * deep);
  hold.queries = room.take<bf16>(wide * QUERIES);
  for (bf16*& shares : hold.shares) shares = room.take<bf16>(ROUND * DEEP * DEEP);
  for (float*& scores : hold.scores) scores = room.take<float>(ROUND * DEEP * DEEP);
  hold.out = room.take<float>(deep * QUERIES);
  hold.highest = room.take<float>(QUERIES);
  hold.total = room.take<float>(QUERIES);
  long place = 0;
  if (before) lay_keys(f, f.texts[text.leader], before, turn.head, false, place, hold);
  lay_keys(f, text, turn.last, turn.head, true, place, hold);
  for (long head = turn.head * f.shape.share; head < (turn.head + 1) * f.shape.share; head++)
    for (long block = turn.first; block < turn.last; block += QUERIES)
      forward_block(f, text, block, smaller(QUERIES, turn.last - block), head, hold);
}

inline long blocks_of(long queries) { return (queries + QUERIES - 1) / QUERIES; }

// Turns of so many blocks, what takes longest first. Few threads want few turns, but each of them some.
std::vector<Turn> turns_of(const Looks& f, long count, long& most) {
  long blocks = 0;
  for (long t = 0; t < count; t++) blocks += blocks_of(f.texts[t].queries) * f.shape.heads;
  const long fair = blocks / (SHARE * omp_get_num_threads()), each = (fair < 1 ? 1 : smaller(fair, BLOCKS)) * QUERIES;
  std::vector<Turn> turns;
  most = 0;
  for (long t = 0; t < count; t++)
    for (long from = 0; from < f.texts[t].queries; from += each)
      for (long h = 0; h < f.shape.heads; h++) {
        turns.push_back({t, from, smaller(from + each, f.texts[t].queries), h});
        const long keys = whole(f.texts[f.texts[t].leader].keys) + whole(turns.back().last);
        if (keys > most) most = keys;
      }
  std::stable_sort(turns.begin(), turns.end(), [](const Turn& a, const Turn& b) { return a.last > b.last; });
  return turns;
}

}  // namespace

void look_at_texts(const Looks& f, long count) {
  long most;
  const std::vector<Turn> turns = turns_of(f, count, most);
  Room room(room_of(f, most));
  Hold hold;
  if (tiles_allowed) open_tiles();
#pragma omp for schedule(dynamic, 1)
  for (long i = 0; i < (long)turns.size(); i++) forward_turn(f, turns[i], room, hold);
  if (tiles_allowed) close_tiles();
}

extern "C" {

// q (tokens, heads * share, width), k (keys, heads, width) and v (keys, heads, depth) to out (tokens, heads * share,
// depth) and logs (heads * share, tokens). table: five numbers for each text, see `Text`.
void attend_texts(const bf16* q, long q_row, long q_head, const bf16* k, long k_row, long k_head, const bf16* v, long v_row,
                  long v_head, const int64_t* table, long count, bf16* out, float* logs, long tokens, long heads,
                  long share, long width, long depth, float scale) {
  const Looks looks = {{q, q_row, q_head, width}, {k, k_row, k_head, width}, {v, v_row, v_head, depth},
                       (const Text*)table, {tokens, heads, share, scale}, out, logs};
#pragma omp parallel
  look_at_texts(looks, count);
}

}  // extern "C"
