// Intel's matrix tiles (AMX): eight registers of 16 rows of 64 bytes, and one instruction that multiplies two of them.
//
// A thread opens tiles before it uses them and closes them afterwards; whether the system allows it is asked once. gcc
// 12's own `_tile_loadconfig` tells the compiler of 8 of the 64 bytes only, and the rest may never be written.
// Source: Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3.

#pragma once

#include "lanes.h"

#ifdef BY_AVX2  // never called there
#define WITH_TILES __attribute__((target("amx-tile,amx-bf16")))
#else
#define WITH_TILES \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx512vnni")))
#endif

namespace {

constexpr long TILE = 16;    // rows of a tile, and fp32 numbers in a row of it
constexpr long DEEP = 32;    // bf16 numbers in a row of it: what one instruction sums over
constexpr long TILE_NUMBERS = TILE * DEEP;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

WITH_TILES inline void open_tiles() {
  const TileShapes shapes;
  __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

WITH_TILES inline void close_tiles() { _tile_release(); }

}  // namespace

// True if this process was allowed to use tiles (`allow_tiles`).
extern bool tiles_allowed;
