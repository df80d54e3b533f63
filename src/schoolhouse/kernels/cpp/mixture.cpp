// Rows on their way to experts and back: what gathers, weighs and sums them, each in one pass over memory and in fp32.

#include "lanes.h"

namespace {

constexpr long STRIDE = 4 * LANES;  // numbers of a sum that the registers hold

// 64 numbers of a token's sum over its choices, from i on, on top of `more` unless that is null.
WITH_BF16 inline void sum_choices(const bf16* rows, const int64_t* place, const float* shares, const bf16* more, bf16* to,
                                  long choices, long width, long i) {
  __m512 sum[4];
  for (long j = 0; j < 4; j++) {
    const long at = i + j * LANES;
    sum[j] = more && at < width ? widen(more + at, inside(width - at)) : _mm512_setzero_ps();
  }
  for (long c = 0; c < choices; c++) {
    const bf16* row = rows + place[c] * width;
    const __m512 share = _mm512_set1_ps(shares ? shares[c] : 1.0f);
    for (long j = 0; j < 4; j++)
      if (i + j * LANES < width) {
        const long at = i + j * LANES;
        sum[j] = _mm512_fmadd_ps(widen(row + at, inside(width - at)), share, sum[j]);
      }
  }
  for (long j = 0; j < 4; j++)
    if (i + j * LANES < width) narrow(to + i + j * LANES, sum[j], inside(width - i - j * LANES));
}

}  // namespace

extern "C" {

// y (tokens, width): each token's sum over its choices of rows, at the places (tokens, choices), times their shares
// (tokens, choices) unless that is null, and its row of `more` (tokens, width) unless that is null.
WITH_BF16 void sum_rows(const bf16* rows, const int64_t* place, const float* shares, const bf16* more, bf16* y,
                        long tokens, long choices, long width) {
#pragma omp parallel for schedule(static) if (tokens * choices * width > SMALL)
  for (long t = 0; t < tokens; t++)
    for (long i = 0; i < width; i += STRIDE)
      sum_choices(rows, place + t * choices, shares ? shares + t * choices : nullptr, more ? more + t * width : nullptr,
                  y + t * width, choices, width, i);
}

// The way back: of each row the inner product of its token's gradient with what came out, and that gradient times the row's
// weight. grad (tokens, width), out and y (rows, width).
WITH_BF16 void spread_rows(const bf16* grad, const bf16* out, const int64_t* token, const float* weights, bf16* y,
                           float* inner, long rows, long width) {
#pragma omp parallel for schedule(static) if (rows * width > SMALL)
  for (long r = 0; r < rows; r++) {
    const bf16 *from = grad + token[r] * width, *beside = out + r * width;
    const __m512 weight = _mm512_set1_ps(weights[r]);
    __m512 sum = _mm512_setzero_ps();
    for (long i = 0; i < width; i += LANES) {
      const __mmask16 held = inside(width - i);
      const __m512 g = widen(from + i, held);
      sum = _mm512_fmadd_ps(g, widen(beside + i, held), sum);
      narrow(y + r * width + i, _mm512_mul_ps(g, weight), held);
    }
    inner[r] = _mm512_reduce_add_ps(sum);
  }
}

}  // extern "C"
