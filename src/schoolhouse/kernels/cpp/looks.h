// What queries look at within texts that lie end to end.

#pragma once

#include "lanes.h"

// A text: its queries (none, or one for each key), its keys, and the text whose keys it sees wholly (itself if none).
struct Text {
  int64_t query, queries, key, keys, leader;
};

// A tensor (tokens, heads, width): its start, and the numbers from token to token and from head to head.
struct Tokens {
  const bf16* at;
  long row, head, width;
};

// heads: of keys; share: heads of queries for each of them.
struct Shape {
  long tokens, heads, share;
  float scale;
};

// See `attend_texts`; logs may be null.
struct Looks {
  Tokens q, k, v;
  const Text* texts;
  Shape shape;
  bf16* out;
  float* logs;
};

// All threads of a region call it for so many texts, and come back when it is done.
void look_at_texts(const Looks& looks, long count);
