// The experts of a mixture by AMX's tiles, forward and backward: each a gated feed-forward for the rows of its own tokens.
//
// A thread takes rows of one expert, as many as its second cache holds. They are gathered into tiles once and stay there;
// each strip of weights is laid out as tiles when its turn comes, and meets all of the rows. A strip of the first product
// has gates on its left and ups on its right, so that what leaves the tiles can be gated on its way; the slopes of gate and
// up leave the same way. Sums run from end to end in fp32; a row has the same bits in whatever company.
// Sources: arXiv 2401.06066, eq. 3 to 5 (experts); arXiv 2002.05202, eq. 6 (their gates).

#include <algorithm>

#include "rows.h"
#include "sides.h"

namespace {

constexpr long ROOM = 1 << 19;  // numbers of a task's rows, of all its widths: what the second cache holds beside a strip
constexpr long SOON = 4;        // rows between one that is gathered and one that is asked for
constexpr long FEWEST = 128;    // rows of a task for which laying out the weights pays

inline long whole(long count) { return up(count, DEEP) * DEEP; }

// An expert as the caller tells of it: where its rows end, its width, its matrices and where their gradients go (or null).
struct Expert {
  int64_t end, width;
  const bf16 *gate, *up, *down;  // (width, hidden), (width, hidden), (hidden, width)
  bf16 *to_gate, *to_up, *to_down;
};

struct Rows {
  long expert, first, count;
  long kept, of, at;  // where the expert's rows are kept, how many it has, and the first of these among them
  // The first of these rows among panels of 32 numbers of each row, kept panel by panel.
  long panel(long number) const { return DEEP * (number * of + at); }
};

// Rows of experts, in their order. Those before `sent` belong to one of a token's choices, the others to all tokens in turn.
struct Mixture {
  const Expert* experts;
  long count, hidden, sent, choices;
  const int64_t* choice;  // of each sent row, counted through all tokens
  const float* shares;    // of each choice
  long token(long row) const { return row < sent ? choice[row] / choices : row - sent; }
  float share(long row) const { return row < sent ? shares[choice[row]] : 1.0f; }
};

// Tasks of all experts, the largest first.
std::vector<Rows> tasks_of(const Mixture& mixture) {
  std::vector<Rows> tasks;
  const long all = mixture.experts[mixture.count - 1].end, even = whole(up(all, 4 * omp_get_max_threads()));
  long first = 0, kept = 0;
  for (long e = 0; e < mixture.count; e++) {
    const Expert& expert = mixture.experts[e];
    long most = ROOM / (whole(mixture.hidden) + whole(expert.width)) / BLOCK_ROWS * BLOCK_ROWS;
    most = std::max(std::min(most, even), FEWEST);
    const long rows = expert.end - first, high = rows ? whole(up(rows, up(rows, most))) : 1;
    for (long at = 0; at < rows; at += high)
      tasks.push_back({e, first + at, std::min(high, rows - at), kept, rows, at});
    first = expert.end, kept += rows * whole(expert.width);
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Rows& a, const Rows& b) { return a.count > b.count; });
  return tasks;
}

// Rows as tiles: 32 rows, of them 32 numbers, as two tiles one after the other; then the next numbers, then the next rows.
inline bf16* place_of(bf16* tiles, long row, long number, long width) {
  return tiles + row / BLOCK_ROWS * BLOCK_ROWS * width + number / DEEP * BLOCK_ROWS * DEEP + row % BLOCK_ROWS * DEEP +
         number % DEEP;
}

inline void ask(const bf16* row, long count) {
  for (long i = 0; i < count; i += DEEP) __builtin_prefetch(row + i);
}

WITH_TILES void gather(const Mixture& mixture, const bf16* x, const Rows& task, bf16* tiles) {
  const long hidden = mixture.hidden, wide = whole(hidden);
  for (long r = 0; r < task.count; r++) {
    const bf16* from = x + mixture.token(task.first + r) * hidden;
    if (r + SOON < task.count) ask(x + mixture.token(task.first + r + SOON) * hidden, hidden);
    for (long i = 0; i < wide; i += DEEP)
      _mm512_store_si512((__m512i*)place_of(tiles, r, i, wide), _mm512_maskz_loadu_epi16(first_numbers(hidden - i), from + i));
  }
}

// A strip of weights: two tiles for each 32 numbers along k, columns from j on of two sides or of one.
WITH_TILES void lay_gates(const Side& gate, const Side& up, long j, long k, bf16* strip) {
  for (long p = 0; p < k; p += DEEP, strip += 2 * TILE_NUMBERS) {
    __m512i x[TILE];
    read_along(gate, j, p, k, x);
    turn_pairs(x);
    store_tile(x, strip);
    read_along(up, j, p, k, x);
    turn_pairs(x);
    store_tile(x, strip + TILE_NUMBERS);
  }
}

WITH_TILES void lay_strip(const Side& side, long j, long k, bf16* strip) {
  for (long p = 0; p < k; p += DEEP, strip += 2 * TILE_NUMBERS) lay_tiles(side, j, p, k, false, strip, TILE_NUMBERS);
}

// Sums of 32 rows and a strip. What left the tiles before is finished along the way.
template <class Before>
WITH_TILES inline void multiply_strip(const bf16* left, const bf16* strip, long steps, Before& before, Sums& out) {
  const long along = up(before.rows - before.row, steps);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long s = 0; s < steps; s++, left += 2 * TILE_NUMBERS, strip += 2 * TILE_NUMBERS) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, strip, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, strip + TILE_NUMBERS, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + TILE_NUMBERS, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    before.some(along);
  }
  _tile_stored(0, out.tile[0], 64);
  _tile_stored(1, out.tile[1], 64);
  _tile_stored(2, out.tile[2], 64);
  _tile_stored(3, out.tile[3], 64);
}

// Sums of 16 gates and their 16 ups on their way: rounded, kept side by side unless `kept` is null, and gated into tiles.
struct Gating {
  const Sums* sums;
  bf16 *kept, *inner;  // of the block's first row
  long row = 0, rows = 0;

  WITH_BF16 void some(long count) {
    for (const long end = row + count < rows ? row + count : rows; row < end; row++) {
      const long t = row / TILE * 2, r = row % TILE;
      const __m512i both =
          (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(sums->tile[t + 1][r]), _mm512_load_ps(sums->tile[t][r]));
      if (kept) _mm512_store_si512(kept + row * DEEP, both);
      const __m512 gate = first_half(both), up = last_half(both);
      narrow(inner + row * DEEP, _mm512_mul_ps(_mm512_mul_ps(gate, opening(gate)), up));
    }
  }
};

// Gradients of 32 gated numbers on their way to those of gate and up, which go to tiles and are kept; with them the gated
// numbers times the rows' shares, and each row's inner product of gated numbers and gradients, sixteen parts of it.
struct Sloping {
  const Sums* sums;
  const bf16* kept[2];                // 16 gates and their ups; the next 16
  bf16 *slopes[2], *inner, *tiles;    // of gates, of ups; of the block's first row
  const float* shares;
  float* products;
  long up_apart, row = 0, rows = 0;

  WITH_BF16 void some(long count) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (const long end = row + count < rows ? row + count : rows; row < end; row++) {
      const __m512 share = _mm512_set1_ps(shares[row]);
      __m512 to_gate[2], to_up[2], scaled[2], product = _mm512_load_ps(products + row * LANES);
#pragma GCC unroll 2
      for (long half = 0; half < 2; half++) {
        const __m512 d = _mm512_load_ps(sums->tile[row / TILE * 2 + half][row % TILE]);
        const __m512i both = _mm512_load_si512(kept[half] + row * DEEP);
        const __m512 g = first_half(both), u = last_half(both);
        const __m512 s = opening(g), open = _mm512_mul_ps(g, s), gated = _mm512_mul_ps(open, u);
        product = _mm512_fmadd_ps(d, gated, product);
        scaled[half] = _mm512_mul_ps(gated, share);
        const __m512 own = _mm512_mul_ps(d, share), bend = _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one);
        to_gate[half] = _mm512_mul_ps(_mm512_mul_ps(own, u), _mm512_mul_ps(s, bend));
        to_up[half] = _mm512_mul_ps(own, open);
      }
      _mm512_store_ps(products + row * LANES, product);
      const __m512i gates = (__m512i)_mm512_cvtne2ps_pbh(to_gate[1], to_gate[0]);
      const __m512i ups = (__m512i)_mm512_cvtne2ps_pbh(to_up[1], to_up[0]);
      _mm512_store_si512(tiles + row * DEEP, gates);
      _mm512_store_si512(tiles + up_apart + row * DEEP, ups);
      _mm512_store_si512(slopes[0] + row * DEEP, gates);
      _mm512_store_si512(slopes[1] + row * DEEP, ups);
      _mm512_store_si512(inner + row * DEEP, (__m512i)_mm512_cvtne2ps_pbh(scaled[1], scaled[0]));
    }
  }
};

// What a thread holds of a task.
struct Hold {
  bf16 *rows, *inner, *strip;
  float *products, *shares;
  Sums* sums;

  Hold(long hidden, long width, long count) {  // the widest there is, and the most rows
    static thread_local Own rows_, inner_, strip_, numbers, sums_;
    rows = rows_.room<bf16>(count * whole(hidden)), inner = inner_.room<bf16>(count * 2 * whole(width));
    strip = strip_.room<bf16>(COLUMNS * std::max(whole(hidden), 2 * whole(width)));
    products = numbers.room<float>(count * (LANES + 1)), shares = products + count * LANES;
    sums = sums_.room<Sums>(2);
  }
};

// Rows as tiles times a side of weights, k numbers, to rows of `hidden` numbers.
WITH_TILES void leave_rows(const bf16* tiles, const Side* sides, const long* depths, long parts, long count, bf16* y,
                           long hidden, Hold& hold) {
  Leaving leaving;
  long k = 0, turn = 0;
  for (long i = 0; i < parts; i++) k += whole(depths[i]);
  for (long j = 0; j < hidden; j += COLUMNS) {
    bf16* strip = hold.strip;
    for (long i = 0; i < parts; strip += COLUMNS * whole(depths[i++])) lay_strip(sides[i], j, depths[i], strip);
    for (long b = 0; b < count; b += BLOCK_ROWS, turn ^= 1) {
      multiply_strip(tiles + b * k, hold.strip, k / DEEP, leaving, hold.sums[turn]);
      leaving.start(hold.sums[turn], std::min(count - b, BLOCK_ROWS), hidden - j, y + b * hidden + j, hidden, false);
    }
  }
  leaving.finish();
}

WITH_TILES void forward(const Mixture& mixture, const bf16* x, const Rows& task, bf16* kept, bf16* y, Hold& hold) {
  const Expert& expert = mixture.experts[task.expert];
  const long hidden = mixture.hidden, width = expert.width, wide = whole(hidden), inner = whole(width);
  const Side gate = {expert.gate, hidden, width, true}, up = {expert.up, hidden, width, true};
  gather(mixture, x, task, hold.rows);
  Gating gating;
  long turn = 0;
  for (long j = 0; j < inner; j += TILE) {
    lay_gates(gate, up, j, hidden, hold.strip);
    for (long b = 0; b < task.count; b += BLOCK_ROWS, turn ^= 1) {
      multiply_strip(hold.rows + b * wide, hold.strip, wide / DEEP, gating, hold.sums[turn]);
      bf16* to = kept ? kept + 2 * task.kept + task.panel(j / TILE) + b * DEEP : nullptr;
      gating = {&hold.sums[turn], to, place_of(hold.inner, b, j, inner), 0, std::min(task.count - b, BLOCK_ROWS)};
    }
  }
  gating.some(BLOCK_ROWS);
  const Side down = {expert.down, width, hidden, true};
  leave_rows(hold.inner, &down, &width, 1, task.count, y + task.first * hidden, hidden, hold);
}

struct Gradients {
  const bf16 *grad, *kept;
  bf16 *slopes, *inner, *to_rows;  // slopes of gates, then of ups; all in panels of 32 numbers of each of an expert's rows
  float* to_shares;
};

WITH_TILES void backward(const Mixture& mixture, const Gradients& g, const Rows& task, Hold& hold) {
  const Expert& expert = mixture.experts[task.expert];
  const long hidden = mixture.hidden, width = expert.width, wide = whole(hidden), deep = whole(width);
  gather(mixture, g.grad, task, hold.rows);
  for (long r = 0; r < task.count; r++) hold.shares[r] = mixture.share(task.first + r);
  std::fill(hold.products, hold.products + task.count * LANES, 0.0f);
  const Side down = {expert.down, width, width, false};
  Sloping sloping;
  long turn = 0;
  for (long j = 0; j < width; j += COLUMNS) {
    lay_strip(down, j, hidden, hold.strip);
    for (long b = 0; b < task.count; b += BLOCK_ROWS, turn ^= 1) {
      multiply_strip(hold.rows + b * wide, hold.strip, wide / DEEP, sloping, hold.sums[turn]);
      const bf16* kept = g.kept + 2 * task.kept + b * DEEP;
      bf16* slopes = g.slopes + 2 * task.kept + b * DEEP;
      const long panel = j / DEEP, panels = deep / DEEP;
      sloping = {&hold.sums[turn], {kept + task.panel(2 * panel), kept + task.panel(2 * panel + 1)},
                 {slopes + task.panel(panel), slopes + task.panel(panels + panel)},
                 g.inner + task.kept + task.panel(panel) + b * DEEP, place_of(hold.inner, b, j, 2 * deep), hold.shares + b,
                 hold.products + b * LANES, deep * BLOCK_ROWS, 0, std::min(task.count - b, BLOCK_ROWS)};
    }
  }
  sloping.some(BLOCK_ROWS);
  for (long r = 0; r < task.count && task.first + r < mixture.sent; r++)
    g.to_shares[mixture.choice[task.first + r]] = _mm512_reduce_add_ps(_mm512_loadu_ps(hold.products + r * LANES));
  const Side sides[] = {{expert.gate, hidden, hidden, false}, {expert.up, hidden, hidden, false}};
  const long depths[] = {width, width};
  leave_rows(hold.inner, sides, depths, 2, task.count, g.to_rows + task.first * hidden, hidden, hold);
}

long widest(const Mixture& mixture) {
  long width = 0;
  for (long e = 0; e < mixture.count; e++) width = std::max(width, (long)mixture.experts[e].width);
  return width;
}

// The gradients of all matrices. Those of gate and up are one product: they meet the same rows.
void weigh(const Mixture& mixture, const bf16* x, const Gradients& g, const int64_t* tokens, bool add) {
  std::vector<Product> products;
  const long hidden = mixture.hidden;
  long first = 0, kept = 0;
  for (long e = 0; e < mixture.count; e++) {
    const Expert& expert = mixture.experts[e];
    const long width = expert.width, deep = whole(width), rows = expert.end - first, panel = rows * DEEP;
    const Side read = {x, hidden, hidden, false, tokens + first}, given = {g.grad, hidden, hidden, false, tokens + first};
    const Side slopes = {g.slopes + 2 * kept, DEEP, 2 * deep, false, nullptr, panel};
    const Side inner = {g.inner + kept, DEEP, width, false, nullptr, panel};
    if (rows && (expert.to_gate || expert.to_up))
      products.push_back({slopes, read, rows, expert.to_gate, hidden, add, expert.to_up, deep, width});
    if (rows && expert.to_down) products.push_back({given, inner, rows, expert.to_down, width, add});
    first = expert.end, kept += rows * deep;
  }
  multiply_all(products, 1);
}

}  // namespace

extern "C" {

// The rows of each expert: its choices (tokens, choices flattened, `count` of them) in their order. choice: of each row the
// number of its choice; place: of each choice its row. Experts are told where their rows end.
void rows_by_expert(const int64_t* chosen, long count, Expert* experts, long sent_to, int64_t* choice, int64_t* place) {
  std::vector<int64_t> next(sent_to + 1, 0);
  for (long c = 0; c < count; c++) next[chosen[c] + 1]++;
  for (long e = 0; e < sent_to; e++) experts[e].end = next[e + 1] += next[e];
  for (long c = 0; c < count; c++) choice[place[c] = next[chosen[c]]++] = c;
}

// y (rows, hidden): each row of x (tokens, hidden), as `Mixture` says, through its expert. kept, unless it is null: expert by
// expert panels of 16 gates and 16 ups of each of its rows; widths are filled up to 32.
void experts_forward(const bf16* x, const Expert* experts, long count, long hidden, long sent, long choices,
                     const int64_t* choice, bf16* kept, bf16* y) {
  const Mixture mixture = {experts, count, hidden, sent, choices, choice, nullptr};
  const std::vector<Rows> tasks = tasks_of(mixture);
  if (tasks.empty()) return;
#pragma omp parallel
  {
    open_tiles();
    Hold hold(hidden, widest(mixture), whole(tasks[0].count));
#pragma omp for schedule(dynamic, 1) nowait
    for (long t = 0; t < (long)tasks.size(); t++) forward(mixture, x, tasks[t], kept, y, hold);
    close_tiles();
  }
}

// The way back. grad (tokens, hidden): of each token's sum of shares times rows. slopes as kept; inner: half as much room;
// tokens: of each row. to_rows (rows, hidden): of what each row read; to_shares: of each choice. add: the gradients of
// matrices are added to what is there.
void experts_backward(const bf16* x, const bf16* grad, const Expert* experts, long count, long hidden, long sent, long choices,
                      const int64_t* choice, const float* shares, const bf16* kept, bf16* slopes, bf16* inner, int64_t* tokens,
                      bf16* to_rows, float* to_shares, long add) {
  const Mixture mixture = {experts, count, hidden, sent, choices, choice, shares};
  const Gradients g = {grad, kept, slopes, inner, to_rows, to_shares};
  const std::vector<Rows> tasks = tasks_of(mixture);
  if (tasks.empty()) return;
#pragma omp parallel
  {
    open_tiles();
    Hold hold(hidden, widest(mixture), whole(tasks[0].count));
#pragma omp for schedule(dynamic, 1) nowait
    for (long t = 0; t < (long)tasks.size(); t++) {
      backward(mixture, g, tasks[t], hold);
      for (long r = tasks[t].first; r < tasks[t].first + tasks[t].count; r++) tokens[r] = mixture.token(r);
    }
    close_tiles();
  }
  weigh(mixture, x, g, tokens, add != 0);
}

}  // extern "C"
