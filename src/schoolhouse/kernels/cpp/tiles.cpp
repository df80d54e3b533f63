// Asking the system for tiles.

#include "tiles.h"

#include <sys/syscall.h>
#include <unistd.h>

bool tiles_allowed = false;

extern "C" {

// Asks the system to let this process use tiles, if they are wanted; the caller knows that the processor has them. 1 if
// they may be used.
long allow_tiles(long wanted) {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl's ARCH_REQ_XCOMP_PERM
  tiles_allowed = wanted && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return tiles_allowed;
}

}  // extern "C"
