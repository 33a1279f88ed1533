// A segment's state as bytes: the keys and values that its next step attends to, and where the range coder is.
//
// Bytes may come from anywhere. All that is counted and indexed by is checked; only the floats are taken as they are.
#include <algorithm>

#include "lm/segment.h"
#include "runtime/archive.h"

namespace encodec {

namespace {

constexpr int64_t kMark = 0x31304d4c;  // "LM01"

// All fields but keys and values in one order, for both ways.
template <class Archive, class State>
void each_field(Archive& archive, State& segment) {
  archive(segment.levels);
  archive(segment.decodes);
  archive(segment.step);
  archive(segment.most_steps);
  archive(segment.previous);
}

bool is_code(const encodec_lm& model, const SegmentState& segment, int64_t code) {
  return segment.step == 0 ? code == -1 : code >= 0 && code < model.sizes().codebook_size;
}

// Calls body(layer, key) for each key that the next step attends to.
template <class Function>
void each_key(const encodec_lm& model, int64_t step, const Function& body) {
  for (int64_t layer = 0; layer < model.sizes().layers; ++layer)
    for (int64_t key = std::max<int64_t>(0, step + 1 - model.sizes().past_context); key <= step; ++key) body(layer, key);
}

}  // namespace

std::vector<char> save_segment(const encodec_lm& model, const SegmentState& segment) {
  std::vector<char> bytes;
  Writer writer(bytes);
  writer(kMark);
  each_field(writer, segment);
  const RangeDecoder& decoder = segment.decoder;
  if (segment.decodes) {
    const auto read = std::min(decoder.offset, static_cast<int64_t>(decoder.payload.size()));
    for (const uint64_t number : {decoder.code, decoder.range}) writer(static_cast<int64_t>(number));
    writer(std::vector<uint8_t>(decoder.payload.begin() + read, decoder.payload.end()));
  } else {
    for (const uint64_t number : {segment.encoder.low, segment.encoder.range}) writer(static_cast<int64_t>(number));
    writer(segment.encoder.bytes);
  }
  std::vector<float> row(2 * model.sizes().dim);
  each_key(model, segment.step, [&](int64_t layer, int64_t key) {
    segment.keys.get(layer, key, row.data(), row.data() + model.sizes().dim);
    writer(row);
  });
  return bytes;
}

SegmentState load_segment(const encodec_lm& model, const char* bytes, int64_t size) {
  Reader reader(bytes, size);
  int64_t mark = 0;
  reader(mark);
  Reader::require(mark == kMark);
  SegmentState segment;
  each_field(reader, segment);
  Reader::require(segment.levels > 0 && segment.levels <= model.sizes().codebooks);
  Reader::require(segment.step >= 0 && segment.step <= segment.most_steps && segment.most_steps <= kMostSteps);
  Reader::require(static_cast<int64_t>(segment.previous.size()) == segment.levels);
  for (const int64_t code : segment.previous) Reader::require(is_code(model, segment, code));
  int64_t first = 0, range = 0;
  reader(first);
  reader(range);
  const auto width = static_cast<uint64_t>(range);
  Reader::require(width >= kLeastRange || (width == 0 && !segment.decodes));
  if (segment.decodes) {
    segment.decoder.code = static_cast<uint64_t>(first);
    segment.decoder.range = width;
    reader(segment.decoder.payload);
  } else {
    segment.encoder.low = static_cast<uint64_t>(first);
    segment.encoder.range = width;
    reader(segment.encoder.bytes);
  }
  segment.keys = Keys(model.key_shape(), segment.decodes ? 1 : kEncodeSteps, segment.most_steps);
  const int64_t oldest = std::max<int64_t>(0, segment.step + 1 - model.sizes().past_context);
  segment.keys.reserve(oldest, segment.step + 1 - oldest);
  std::vector<float> row;
  each_key(model, segment.step, [&](int64_t layer, int64_t key) {
    reader(row);
    Reader::require(static_cast<int64_t>(row.size()) == 2 * model.sizes().dim);
    segment.keys.put(layer, key, row.data(), row.data() + model.sizes().dim);
  });
  reader.end();
  return segment;
}

}  // namespace encodec
