// Keys and values of all heads around the product that makes them from latents, each way in one pass over memory.

#include "lanes.h"

namespace {

WITH_BF16 inline void copy_numbers(const bf16* from, bf16* to, long count) {
  for (long i = 0; i < count; i += 2 * LANES) {
    const __mmask32 held = count - i >= 2 * LANES ? ~0u : (1u << (count - i)) - 1;
    _mm512_mask_storeu_epi16(to + i, held, _mm512_maskz_loadu_epi16(held, from + i));
  }
}

}  // namespace

extern "C" {

// both (tokens, heads, still + depth) and key (tokens, turning), `key_row` apart, to keys (tokens, heads, still + turning),
// the second part of which all heads share, and values (tokens, heads, depth).
WITH_BF16 void spread_keys(const bf16* both, const bf16* key, long key_row, bf16* keys, bf16* values, long tokens, long heads,
                           long still, long turning, long depth) {
#pragma omp parallel for schedule(static) if (tokens * heads * (still + depth) > SMALL)
  for (long t = 0; t < tokens; t++)
    for (long h = 0; h < heads; h++) {
      const bf16* from = both + (t * heads + h) * (still + depth);
      bf16* to = keys + (t * heads + h) * (still + turning);
      copy_numbers(from, to, still);
      copy_numbers(key + t * key_row, to + still, turning);
      copy_numbers(from + still, values + (t * heads + h) * depth, depth);
    }
}

// The gradients of both and key from those of keys and values.
WITH_BF16 void spread_keys_back(const bf16* keys, const bf16* values, bf16* to_both, bf16* to_key, long tokens, long heads,
                                long still, long turning, long depth) {
#pragma omp parallel for schedule(static) if (tokens * heads * (still + depth) > SMALL)
  for (long t = 0; t < tokens; t++) {
    for (long h = 0; h < heads; h++) {
      bf16* to = to_both + (t * heads + h) * (still + depth);
      copy_numbers(keys + (t * heads + h) * (still + turning), to, still);
      copy_numbers(values + (t * heads + h) * depth, to + still, depth);
    }
    for (long i = 0; i < turning; i += LANES) {
      const __mmask16 held = inside(turning - i);
      __m512 sum = _mm512_setzero_ps();
      for (long h = 0; h < heads; h++)
        sum = _mm512_add_ps(sum, widen(keys + (t * heads + h) * (still + turning) + still + i, held));
      narrow(to_key + t * turning + i, sum, held);
    }
  }
}

}  // extern "C"
