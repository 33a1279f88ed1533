// A segment on its way through the language model and the range coder, and the coding of several at once.
#pragma once

#include <cstdint>
#include <vector>

#include "lm/keys.h"
#include "lm/model.h"
#include "lm/range_coder.h"

namespace encodec {

// Steps of a segment that are encoded at once: as many rows as fill the register tiles.
constexpr int64_t kEncodeSteps = 64;
// Steps of a segment, 330 days at 75 Hz: a phase of a position stays below 2^31.
constexpr int64_t kMostSteps = (int64_t{1} << 31) - 1;

struct SegmentState {
  int64_t levels = 0;
  bool decodes = false;
  int64_t step = 0, most_steps = kMostSteps;
  std::vector<int64_t> previous;  // the codes of the step before, -1 before the first
  Keys keys;
  RangeEncoder encoder;
  RangeDecoder decoder;
};

// Codes of one segment: those of a level follow each other, and the levels lie `stride` apart.
struct Codes {
  int64_t* data;
  int64_t stride, frames;
};

// Segments of at most `most_steps`, for which there is memory; those to decode have a payload.
SegmentState open_encoder(const encodec_lm& model, int64_t levels, int64_t most_steps);
SegmentState open_decoder(const encodec_lm& model, int64_t levels, int64_t most_steps, std::vector<uint8_t> payload);
// Codes each segment's next frames. Their bits depend on neither the batch, the pieces nor the threads.
void encode_segments(const encodec_lm& model, const std::vector<SegmentState*>& segments, const std::vector<Codes>& codes, int threads);
void decode_segments(const encodec_lm& model, const std::vector<SegmentState*>& segments, const std::vector<Codes>& codes, int threads);

// Logits [frames, levels, codebook_size] by which a segment's codes are coded.
void write_logits(const encodec_lm& model, int64_t levels, const Codes& codes, float* out);

// A segment's state as bytes, the same on every tier. Reading throws std::invalid_argument for what no segment comes to.
std::vector<char> save_segment(const encodec_lm& model, const SegmentState& segment);
SegmentState load_segment(const encodec_lm& model, const char* bytes, int64_t size);

}  // namespace encodec
