// The C interface of the language model's coder.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include "api/engine.h"
#include "api/guard.h"
#include "lm/model.h"
#include "lm/segment.h"
#include "runtime/threads.h"
#include "simd/tiers.h"

using namespace encodec;

struct encodec_segment {
  encodec_segment(const encodec_lm* model, SegmentState state) : model(model), state(std::move(state)) {}

  const encodec_lm* model;
  SegmentState state;
  mutable std::atomic<bool> taken = false;  // by a call
  bool broken = false;                      // by a call that failed half way
};

namespace {

void require_sizes(const encodec_lm_sizes& sizes) {
  for (const int64_t size : {sizes.codebooks, sizes.codebook_size, sizes.dim, sizes.heads, sizes.layers, sizes.hidden, sizes.past_context})
    require(size > 0 && size <= int64_t{1} << 24, "a language model's sizes are positive, and at most 2^24");
  require(sizes.dim % 2 == 0 && sizes.dim % sizes.heads == 0, "a language model's width is even, and a multiple of its heads");
}

void require_opening(const encodec_lm& model, int64_t levels, int64_t most_frames) {
  require(most_frames >= 0 && most_frames <= kMostSteps, "a segment has at most 2^31 - 1 frames");
  require(levels > 0 && levels <= model.sizes().codebooks, "a segment has at least one level, and at most as many as the language model");
}

// Marks segments as broken until the call has done its work.
class Unfinished {
 public:
  Unfinished(encodec_segment* const* segments, int64_t batch) : segments_(segments), batch_(batch) { mark(true); }
  void done() const { mark(false); }

 private:
  void mark(bool broken) const {
    for (int64_t b = 0; b < batch_; ++b) segments_[b]->broken = broken;
  }
  encodec_segment* const* segments_;
  int64_t batch_;
};

void require_call(encodec_segment* const* segments, int64_t batch, const int64_t* frames, bool decodes) {
  for (int64_t b = 0; b < batch; ++b) {
    const encodec_segment& segment = *segments[b];
    require(segment.model == segments[0]->model, "the segments of one call are those of one model");
    require(segment.state.decodes == decodes, "this segment was opened for the other direction");
    require(!segment.broken, "a call of this segment failed half way: open a new one");
    require(decodes || segment.state.encoder.range != 0, "this segment has ended: open a new one");
    require(frames[b] >= 0 && frames[b] <= segment.state.most_steps - segment.state.step, "a segment has at most as many frames as it was opened for");
  }
}

std::vector<SegmentState*> states_of(encodec_segment* const* segments, int64_t batch) {
  std::vector<SegmentState*> states;
  for (int64_t b = 0; b < batch; ++b) states.push_back(&segments[b]->state);
  return states;
}

std::vector<Codes> codes_of(int64_t* const* codes, const int64_t* strides, const int64_t* frames, int64_t batch) {
  std::vector<Codes> places;
  for (int64_t b = 0; b < batch; ++b) places.push_back({codes[b], strides[b], frames[b]});
  return places;
}

void require_codes(const encodec_lm& model, int64_t levels, const Codes& codes) {
  for (int64_t level = 0; level < levels; ++level)
    for (int64_t frame = 0; frame < codes.frames; ++frame) {
      const int64_t code = codes.data[level * codes.stride + frame];
      require(code >= 0 && code < model.sizes().codebook_size, "a code lies outside of the language model's codebook");
    }
}

}  // namespace

encodec_lm* encodec_lm_new(const char* tier, const encodec_lm_sizes* sizes, const float* const* weights, const float* divisors) {
  return guarded_new([&] {
    require_sizes(*sizes);
    for (int64_t i = 0; i < sizes->dim / 2; ++i) require(divisors[i] >= 1, "a position's divisors are 1 or more");
    const Ops& ops = find_tier(tier);
    encodec_lm* made = nullptr;
    // a task: with the caller's own floating-point environment, small weights may be flushed to zero where they are scaled
    parallel_for(1, 1, [&](int64_t) { made = new encodec_lm(ops, *sizes, weights, divisors); });
    return made;
  });
}

void encodec_lm_free(encodec_lm* model) { delete model; }

int encodec_lm_logits(const encodec_lm* model, int64_t levels, const int64_t* codes, int64_t stride, int64_t frames, float* out) {
  return guarded([&] {
    require_opening(*model, levels, frames);
    const Codes places = {const_cast<int64_t*>(codes), stride, frames};
    require_codes(*model, levels, places);
    parallel_for(1, 1, [&](int64_t) { write_logits(*model, levels, places, out); });
  });
}

encodec_segment* encodec_segment_encode(const encodec_lm* model, int64_t levels, int64_t most_frames) {
  return guarded_new([&] {
    require_opening(*model, levels, most_frames);
    return new encodec_segment(model, open_encoder(*model, levels, most_frames));
  });
}

encodec_segment* encodec_segment_decode(const encodec_lm* model, int64_t levels, int64_t most_frames, const uint8_t* payload,
                                        int64_t size) {
  return guarded_new([&] {
    require_opening(*model, levels, most_frames);
    return new encodec_segment(model, open_decoder(*model, levels, most_frames, {payload, payload + size}));
  });
}

void encodec_segment_close(encodec_segment* segment) { delete segment; }

int encodec_encode(encodec_segment* const* segments, int64_t batch, const int64_t* const* codes, const int64_t* strides,
                   const int64_t* frames, int threads) {
  return guarded([&] {
    const Taken<encodec_segment> taken(segments, batch);
    require_call(segments, batch, frames, false);
    // what is only read is read through the same record as what is written
    const std::vector<Codes> places = codes_of(const_cast<int64_t* const*>(codes), strides, frames, batch);
    for (int64_t b = 0; b < batch; ++b) require_codes(*segments[b]->model, segments[b]->state.levels, places[b]);
    const Unfinished unfinished(segments, batch);
    if (batch > 0) encode_segments(*segments[0]->model, states_of(segments, batch), places, std::max(1, threads));
    unfinished.done();
  });
}

int encodec_decode(encodec_segment* const* segments, int64_t batch, int64_t* const* codes, const int64_t* strides,
                   const int64_t* frames, int threads) {
  return guarded([&] {
    const Taken<encodec_segment> taken(segments, batch);
    require_call(segments, batch, frames, true);
    const Unfinished unfinished(segments, batch);
    const std::vector<Codes> places = codes_of(codes, strides, frames, batch);
    if (batch > 0) decode_segments(*segments[0]->model, states_of(segments, batch), places, std::max(1, threads));
    unfinished.done();
  });
}

int64_t encodec_segment_bytes(encodec_segment* segment, int final, uint8_t* bytes, int64_t size) {
  int64_t count = 0;
  const int failed = guarded([&] {
    const Taken<encodec_segment> taken(&segment, 1);
    require(!segment->broken && !segment->state.decodes, "only a segment that is encoded, by calls that did not fail, has bytes");
    RangeEncoder& encoder = segment->state.encoder;
    if (final && encoder.range != 0) encoder.finish();
    count = encoder.settled();
    if (bytes && size == count) {
      std::copy_n(encoder.bytes.begin(), count, bytes);
      encoder.bytes.erase(encoder.bytes.begin(), encoder.bytes.begin() + count);
    }
  });
  return failed ? failed : count;
}

int64_t encodec_segment_levels(const encodec_segment* segment, int decodes) {
  return segment->state.decodes == (decodes != 0) ? segment->state.levels : 0;
}

int encodec_segment_used_up(const encodec_segment* segment) { return segment->state.decoder.used_up() ? 1 : 0; }

int64_t encodec_segment_save(const encodec_segment* segment, void* bytes, int64_t size) {
  int64_t written = 0;
  const int failed = guarded([&] {
    const Taken<encodec_segment> taken(&segment, 1);
    require(!segment->broken, "a call of this segment failed half way: open a new one");
    const std::vector<char> saved = save_segment(*segment->model, segment->state);
    written = static_cast<int64_t>(saved.size());
    if (written == size) std::copy(saved.begin(), saved.end(), static_cast<char*>(bytes));
  });
  return failed ? failed : written;
}

encodec_segment* encodec_segment_load(const encodec_lm* model, const void* bytes, int64_t size) {
  return guarded_new([&] {
    return new encodec_segment(model, load_segment(*model, static_cast<const char*>(bytes), size));
  });
}
