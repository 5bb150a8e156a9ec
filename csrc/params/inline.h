// Functions that must not be left out of line.
#pragma once

#define ACTION_INLINE inline __attribute__((always_inline))
