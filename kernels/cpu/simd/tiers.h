// The instruction-set tiers in this build, and those that this machine can run.
#pragma once

#include "simd/ops.h"

namespace encodec {

// The n-th tier that runs here, best first, or null.
const Ops* tier(int64_t n);
// The tier of that name, or the best for null. Throws std::invalid_argument where it is unknown or can't run here.
const Ops& find_tier(const char* name);

}  // namespace encodec
