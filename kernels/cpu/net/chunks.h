// Chunked models: the volume that is taken off a chunk before the encoder, and decoded chunks faded into each other.
//
// One order of summation, whatever the batch and the threads: that of the torch code in encodec_fast/chunks.py, bit for bit.
#pragma once

#include "api/engine.h"

namespace encodec {

// y = x / scale with scale = sqrt(mean(mono^2)) + 1e-8, mono the mean of the channels; the mean square is summed by halves.
void normalize(const encodec_clips& x, int64_t batch, int64_t channels, int threads, const encodec_clips& y, float* scales);

// As encodec_overlap_add.
void overlap_add(const encodec_clips& x, int64_t count, int64_t batch, int64_t channels, const float* weight, int64_t stride,
                 int threads, const encodec_clips& y);

}  // namespace encodec
