#include "lm/segment.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "runtime/threads.h"

namespace encodec {

namespace {

// Segments that are decoded together, a row each: the weights are read once for all of them.
constexpr int64_t kMostRows = 32;
// Weights of a codebook that are summed before the search looks at them one by one.
constexpr int64_t kSearchBlock = 32;

LanguageWorkspace& own_workspace() {
  thread_local LanguageWorkspace workspace;
  return workspace;
}

// The weights of all codes at one step and level.
class Distribution {
 public:
  explicit Distribution(const encodec_lm& model) : model_(model), weights_(model.logit_stride()) {}

  void fit(const float* logits) {
    if (!model_.ops().softmax_weights(logits, model_.logit_stride(), weights_.data()))
      throw std::invalid_argument("the language model's logits are not finite: its weights are damaged");
  }
  Interval of(int64_t code) const {
    const uint64_t start = sum(0, code), frequency = weights_[code];
    return {start, frequency, start + sum(code, model_.sizes().codebook_size)};
  }
  uint64_t total() const { return sum(0, model_.sizes().codebook_size); }
  // The code whose part of [0, total) holds the target.
  std::pair<int64_t, Interval> find(uint64_t target, uint64_t total) const {
    const int64_t size = model_.sizes().codebook_size;
    int64_t code = 0;
    uint64_t start = 0;
    for (; code + kSearchBlock < size; code += kSearchBlock) {
      const uint64_t block = sum(code, code + kSearchBlock);
      if (start + block > target) break;
      start += block;
    }
    while (start + weights_[code] <= target) start += weights_[code++];
    return {code, {start, static_cast<uint64_t>(weights_[code]), total}};
  }

 private:
  uint64_t sum(int64_t first, int64_t end) const {
    uint64_t sum = 0;
    for (int64_t n = first; n < end; ++n) sum += static_cast<uint32_t>(weights_[n]);
    return sum;
  }

  const encodec_lm& model_;
  std::vector<int32_t> weights_;
};

// Runs a segment's next frames, many at once. Calls body(level, first frame, frames, logits) for each level of them in turn, and
// end(frames) when all levels are done.
template <class Body, class End>
void run_segment(const encodec_lm& model, SegmentState& segment, const Codes& codes, const Body& body, const End& end) {
  LanguageWorkspace& workspace = own_workspace();
  const int64_t levels = segment.levels;
  for (int64_t done = 0; done < codes.frames; done += kEncodeSteps) {
    const int64_t count = std::min(kEncodeSteps, codes.frames - done);
    float* states = workspace.states.reserve(count * model.stride());
    for (int64_t i = 0; i < count; ++i) {
      model.embed(segment.previous.data(), levels, segment.step + i, states + i * model.stride());
      for (int64_t level = 0; level < levels; ++level) segment.previous[level] = codes.data[level * codes.stride + done + i];
    }
    model.run({{&segment.keys, segment.step, count}}, workspace);
    float* logits = workspace.logits.reserve(count * model.logit_stride());
    for (int64_t level = 0; level < levels; ++level) {
      model.logits(level, workspace.states.reserve(0), count, logits);
      body(level, done, count, logits);
    }
    end(count);
    segment.step += count;
  }
}

void encode_segment(const encodec_lm& model, SegmentState& segment, const Codes& codes) {
  Distribution distribution(model);
  const int64_t levels = segment.levels;
  std::vector<Interval> intervals(kEncodeSteps * levels);
  const auto fit_level = [&](int64_t level, int64_t first, int64_t count, const float* logits) {
    for (int64_t i = 0; i < count; ++i) {
      distribution.fit(logits + i * model.logit_stride());
      intervals[i * levels + level] = distribution.of(codes.data[level * codes.stride + first + i]);
    }
  };
  // frame by frame: a level is known for all frames before the next one is
  const auto encode_frames = [&](int64_t count) {
    for (int64_t i = 0; i < count * levels; ++i) segment.encoder.encode(intervals[i]);
  };
  run_segment(model, segment, codes, fit_level, encode_frames);
}

// One frame of each segment, to frame `frame` of its codes.
void decode_frame(const encodec_lm& model, const std::vector<SegmentState*>& segments, const std::vector<const Codes*>& codes,
                  int64_t frame, Distribution& distribution) {
  LanguageWorkspace& workspace = own_workspace();
  const auto rows = static_cast<int64_t>(segments.size());
  float* states = workspace.states.reserve(rows * model.stride());
  std::vector<Steps> steps;
  int64_t levels = 0;
  for (int64_t row = 0; row < rows; ++row) {
    SegmentState& segment = *segments[row];
    model.embed(segment.previous.data(), segment.levels, segment.step, states + row * model.stride());
    steps.push_back({&segment.keys, segment.step, 1});
    levels = std::max(levels, segment.levels);
  }
  model.run(steps, workspace);
  float* logits = workspace.logits.reserve(rows * model.logit_stride());
  for (int64_t level = 0; level < levels; ++level) {
    model.logits(level, workspace.states.reserve(0), rows, logits);
    for (int64_t row = 0; row < rows; ++row) {
      SegmentState& segment = *segments[row];
      if (level >= segment.levels) continue;
      distribution.fit(logits + row * model.logit_stride());
      const uint64_t total = distribution.total();
      const auto [code, interval] = distribution.find(segment.decoder.target(total), total);
      segment.decoder.consume(interval);
      segment.previous[level] = codes[row]->data[level * codes[row]->stride + frame] = code;
    }
  }
  for (SegmentState* segment : segments) ++segment->step;
}

}  // namespace

void write_logits(const encodec_lm& model, int64_t levels, const Codes& codes, float* out) {
  SegmentState segment = open_encoder(model, levels, codes.frames);
  const int64_t size = model.sizes().codebook_size;
  const auto write_level = [&](int64_t level, int64_t first, int64_t count, const float* logits) {
    for (int64_t i = 0; i < count; ++i) std::copy_n(logits + i * model.logit_stride(), size, out + ((first + i) * levels + level) * size);
  };
  run_segment(model, segment, codes, write_level, [](int64_t) {});
}

SegmentState open_encoder(const encodec_lm& model, int64_t levels, int64_t most_steps) {
  SegmentState segment;
  segment.levels = levels;
  segment.most_steps = most_steps;
  segment.previous.assign(levels, -1);
  segment.keys = model.first_keys(kEncodeSteps, most_steps);
  return segment;
}

SegmentState open_decoder(const encodec_lm& model, int64_t levels, int64_t most_steps, std::vector<uint8_t> payload) {
  SegmentState segment;
  segment.levels = levels;
  segment.most_steps = most_steps;
  segment.previous.assign(levels, -1);
  segment.keys = model.first_keys(1, most_steps);
  segment.decodes = true;
  segment.decoder = RangeDecoder(std::move(payload));
  return segment;
}

void encode_segments(const encodec_lm& model, const std::vector<SegmentState*>& segments, const std::vector<Codes>& codes, int threads) {
  parallel_for(threads, static_cast<int64_t>(segments.size()), [&](int64_t b) { encode_segment(model, *segments[b], codes[b]); });
}

void decode_segments(const encodec_lm& model, const std::vector<SegmentState*>& segments, const std::vector<Codes>& codes, int threads) {
  const auto batch = static_cast<int64_t>(segments.size());
  const int64_t share = std::min(kMostRows, (batch + threads - 1) / threads);
  parallel_for(threads, batch ? (batch + share - 1) / share : 0, [&](int64_t task) {
    const int64_t end = std::min(batch, (task + 1) * share);
    Distribution distribution(model);
    for (int64_t frame = 0;; ++frame) {
      std::vector<SegmentState*> rows;
      std::vector<const Codes*> places;
      for (int64_t b = task * share; b < end; ++b)
        if (frame < codes[b].frames) rows.push_back(segments[b]), places.push_back(&codes[b]);
      if (rows.empty()) return;
      decode_frame(model, rows, places, frame, distribution);
    }
  });
}

}  // namespace encodec
