// A mixture's router in training: scores of all experts by AMX's tiles, each token's choice among them, and the way back.
//
// Products of bf16 numbers are exact in fp32, and so are summed there. Of a token few scores have a gradient, those of its
// own experts, unless a loss reads all of them; the others are skipped. What is summed over tokens is summed in blocks whose
// size no number of threads changes.
// Source: arXiv 2412.19437, section 2.1.2.

#include <math.h>
#include <string.h>

#include "rows.h"
#include "sides.h"

namespace {

constexpr long BLOCKS = 16;  // of tokens whose part of the weight's gradient is one sum

// How experts are chosen: by a softmax or by sigmoids, from the best groups alone, and what the shares are.
struct Rule {
  int64_t experts, active, groups, kept, softmax, normalised;
  double scale;
};

WITH_BF16 void score(const Rule& rule, float* logits) {
  const long count = rule.experts;
  if (!rule.softmax) {
    for (long e = 0; e < count; e += LANES) _mm512_storeu_ps(logits + e, sigmoid(_mm512_loadu_ps(logits + e)));
    return;
  }
  __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
  for (long e = 0; e < count; e += LANES)
    most = _mm512_mask_max_ps(most, inside(count - e), most, _mm512_loadu_ps(logits + e));
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  for (long e = 0; e < count; e += LANES) {
    const __m512 x = share_of(_mm512_sub_ps(_mm512_loadu_ps(logits + e), top));
    total = _mm512_mask_add_ps(total, inside(count - e), total, x);
    _mm512_storeu_ps(logits + e, x);
  }
  const __m512 all = _mm512_set1_ps(1 / _mm512_reduce_add_ps(total));
  for (long e = 0; e < count; e += LANES) _mm512_storeu_ps(logits + e, _mm512_mul_ps(_mm512_loadu_ps(logits + e), all));
}

// The place of the highest number, the first of equal ones; it is -inf afterwards.
long take_best(float* x, long count) {
  long best = 0;
  for (long i = 1; i < count; i++)
    if (x[i] > x[best]) best = i;
  x[best] = -INFINITY;
  return best;
}

// Groups that are left out get -inf for all of their experts. With a bias a group counts by its two best, else by its best.
void keep_groups(const Rule& rule, bool biased, float* rank, float* room) {
  const long size = rule.experts / rule.groups;
  float* best = room + rule.experts;
  for (long g = 0; g < rule.groups; g++) {
    const float* own = rank + g * size;
    float first = -INFINITY, second = -INFINITY;
    for (long i = 0; i < size; i++)
      if (own[i] > first)
        second = first, first = own[i];
      else if (own[i] > second)
        second = own[i];
    best[g] = biased ? first + second : first;
  }
  for (long e = 0; e < rule.experts; e++) room[e] = -INFINITY;
  for (long k = 0; k < rule.kept; k++) {
    const long g = take_best(best, rule.groups);
    memcpy(room + g * size, rank + g * size, size * sizeof(float));
  }
  memcpy(rank, room, rule.experts * sizeof(float));
}

void choose(const Rule& rule, const float* scores, const float* bias, int64_t* chosen, float* shares, float* rank) {
  for (long e = 0; e < rule.experts; e++) rank[e] = scores[e] + (bias ? bias[e] : 0);
  if (rule.groups > 1) keep_groups(rule, bias != nullptr, rank, rank + rule.experts);
  float total = 1e-20f;
  for (long a = 0; a < rule.active; a++) total += shares[a] = scores[chosen[a] = take_best(rank, rule.experts)];
  for (long a = 0; a < rule.active; a++) shares[a] *= rule.normalised ? rule.scale / total : rule.scale;
}

// The gradients of a token's logits from those of its shares and scores; `scores_grad` may be null.
void slopes_of(const Rule& rule, const float* scores, const int64_t* chosen, const float* shares_grad,
               const float* scores_grad, float* out) {
  for (long e = 0; e < rule.experts; e++) out[e] = scores_grad ? scores_grad[e] : 0;
  float total = 1e-20f, weighed = 0;
  for (long a = 0; a < rule.active; a++) total += scores[chosen[a]], weighed += shares_grad[a] * scores[chosen[a]];
  for (long a = 0; a < rule.active; a++)
    out[chosen[a]] += rule.scale * (rule.normalised ? (shares_grad[a] - weighed / total) / total : shares_grad[a]);
  float inner = 0;
  for (long e = 0; e < rule.experts; e++) inner += out[e] * scores[e];
  for (long e = 0; e < rule.experts; e++)
    out[e] = scores[e] * (rule.softmax ? out[e] - inner : out[e] * (1 - scores[e]));
}

}  // namespace

extern "C" {

// x (tokens, hidden) and weight (experts, hidden) to each token's experts and shares (tokens, active) and to all scores
// (tokens, experts). bias: of each expert, or null.
WITH_TILES void router(const bf16* x, const bf16* weight, const float* bias, const Rule* rule, int64_t* chosen, float* shares,
                       float* scores, long tokens, long hidden) {
  const long wide = up(hidden, DEEP) * DEEP, experts = rule->experts, columns = up(experts, COLUMNS) * COLUMNS;
  std::vector<bf16> laid(columns * wide + DEEP);
  bf16* strips = (bf16*)(((uintptr_t)laid.data() + 63) / 64 * 64);
  const Side side = {weight, hidden, experts, true};
  for (long j = 0; j < columns; j += COLUMNS)
    for (long p = 0; p < hidden; p += DEEP)
      lay_tiles(side, j, p, hidden, false, strips + j * wide + p * COLUMNS, TILE_NUMBERS);
#pragma omp parallel
  {
    open_tiles();
    std::vector<float> room(TILE * (columns + LANES) + 3 * experts + LANES);
    alignas(64) bf16 end[TILE_NUMBERS];
    float *logits = room.data(), *rank = logits + TILE * (columns + LANES);
#pragma omp for schedule(static) nowait
    for (long t = 0; t < tokens; t += TILE) {
      const long rows = tokens - t < TILE ? tokens - t : TILE;
      for (long j = 0; j < experts; j += TILE) {
        const bf16* strip = strips + j / COLUMNS * COLUMNS * wide + j % COLUMNS * DEEP;
        _tile_zero(0);
        for (long p = 0; p < hidden; p += DEEP, strip += 2 * TILE_NUMBERS) {
          if (rows == TILE && hidden - p >= DEEP) {
            _tile_loadd(1, x + t * hidden + p, hidden * sizeof(bf16));
          } else {
            for (long i = 0; i < TILE; i++)
              _mm512_store_si512(end + i * DEEP, i < rows ? _mm512_maskz_loadu_epi16(first_numbers(hidden - p),
                                                                                     x + (t + i) * hidden + p)
                                                          : _mm512_setzero_si512());
            _tile_loadd(1, end, 64);
          }
          _tile_loadd(2, strip, 64);
          _tile_dpbf16ps(0, 1, 2);
        }
        _tile_stored(0, logits + j, columns * sizeof(float));
      }
      for (long i = 0; i < rows; i++) {
        float* own = logits + i * columns;
        score(*rule, own);
        memcpy(scores + (t + i) * experts, own, experts * sizeof(float));
        choose(*rule, own, bias, chosen + (t + i) * rule->active, shares + (t + i) * rule->active, rank);
      }
    }
    close_tiles();
  }
}

// The gradients of x and of the weight from those of shares and, unless it is null, of scores. parts: room for 16 sums of
// (experts, hidden).
WITH_BF16 void router_back(const bf16* x, const bf16* weight, const Rule* rule, const int64_t* chosen, const float* scores,
                           const float* shares_grad, const float* scores_grad, bf16* to_x, float* parts, bf16* to_weight,
                           long tokens, long hidden) {
  const long experts = rule->experts, size = experts * hidden, high = (tokens + BLOCKS - 1) / BLOCKS;
#pragma omp parallel
  {
    std::vector<float> slopes(experts), sum(hidden + LANES);
#pragma omp for schedule(static)
    for (long b = 0; b < BLOCKS; b++) {
      float* part = parts + b * size;
      memset(part, 0, size * sizeof(float));
      for (long t = b * high; t < (b + 1) * high && t < tokens; t++) {
        slopes_of(*rule, scores + t * experts, chosen + t * rule->active, shares_grad + t * rule->active,
                  scores_grad ? scores_grad + t * experts : nullptr, slopes.data());
        memset(sum.data(), 0, hidden * sizeof(float));
        for (long e = 0; e < experts; e++) {
          if (slopes[e] == 0) continue;
          const __m512 slope = _mm512_set1_ps(slopes[e]);
          for (long i = 0; i < hidden; i += LANES) {
            const __mmask16 held = inside(hidden - i);
            const __m512 own = widen(x + t * hidden + i, held), w = widen(weight + e * hidden + i, held);
            float *to = sum.data() + i, *beside = part + e * hidden + i;
            _mm512_mask_storeu_ps(to, held, _mm512_fmadd_ps(slope, w, _mm512_maskz_loadu_ps(held, to)));
            _mm512_mask_storeu_ps(beside, held, _mm512_fmadd_ps(slope, own, _mm512_maskz_loadu_ps(held, beside)));
          }
        }
        for (long i = 0; i < hidden; i += LANES)
          narrow(to_x + t * hidden + i, _mm512_maskz_loadu_ps(inside(hidden - i), sum.data() + i), inside(hidden - i));
      }
    }
#pragma omp for schedule(static)
    for (long i = 0; i < size; i += LANES) {
      const __mmask16 held = inside(size - i);
      __m512 total = _mm512_setzero_ps();
      for (long b = 0; b < BLOCKS; b++) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(held, parts + b * size + i));
      narrow(to_weight + i, total, held);
    }
  }
}

}  // extern "C"
