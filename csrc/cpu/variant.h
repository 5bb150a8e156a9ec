// What one instruction set provides: its launchers.
//
// Letters as in action_kernels/backends/interface.py: G groups, N queries, M bank rows, D features, k selected rows.
#pragma once

#include <cstdint>

#include "../params/layout.h"

namespace action {

struct Variant {
  const char* name;
  const Launcher* launchers;  // the same ones in the same order in every variant
  int64_t count;
};

const Variant& variant_generic();
const Variant& variant_avx2();
const Variant& variant_avx512();

// What all of a call's threads together may use.
struct Resources {
  int threads = 1;
  int64_t scratch_bytes = 0;
};

}  // namespace action
