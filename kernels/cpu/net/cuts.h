// The bounds of the cuts of time that no bit depends on. A test or a search for a wrong bit may change them while no call runs.
#pragma once

#include <cstdint>

namespace encodec {

enum class Cut { kClips, kPiece, kWave, kTask, kLstmClips, kLstmRows, kLstmSteps, kTile, kBlock };

int64_t bound_of(Cut cut);

// bound: at least 1, or 0 for the one that the engine comes with. Throws std::invalid_argument for another and for an unknown name.
void set_bound(const char* name, int64_t bound);

}  // namespace encodec
