// A clip's state as bytes: little more than the rows and the h and c that it carries, the same on every tier.
#include <cstring>
#include <stdexcept>

#include "program.h"

using namespace encodec;

namespace {

constexpr int64_t kMark = 0x31304345;  // "EC01"

class Writer {
 public:
  explicit Writer(std::vector<char>& bytes) : bytes_(bytes) {}
  void operator()(const int64_t& value) { append(&value, sizeof value); }
  void operator()(const bool& value) { (*this)(static_cast<int64_t>(value)); }
  void operator()(const std::vector<float>& values) {
    (*this)(static_cast<int64_t>(values.size()));
    append(values.data(), values.size() * sizeof(float));
  }

 private:
  void append(const void* data, size_t size) {
    const char* from = static_cast<const char*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  std::vector<char>& bytes_;
};

class Reader {
 public:
  Reader(const char* bytes, int64_t size) : bytes_(bytes), left_(size) {}
  void operator()(int64_t& value) { take(&value, 1, sizeof value); }
  void operator()(bool& value) {
    int64_t wide = 0;
    (*this)(wide);
    value = wide != 0;
  }
  void operator()(std::vector<float>& values) {
    int64_t count = 0;
    (*this)(count);
    require(count >= 0 && count <= left_ / static_cast<int64_t>(sizeof(float)));
    values.resize(count);
    take(values.data(), count, sizeof(float));
  }
  void end() const { require(left_ == 0); }
  static void require(bool holds) {
    if (!holds) throw std::invalid_argument("these bytes are not the state of a clip in such a program");
  }

 private:
  void take(void* data, int64_t count, int64_t size) {
    require(count * size <= left_);
    if (count > 0) std::memcpy(data, bytes_, count * size);
    bytes_ += count * size;
    left_ -= count * size;
  }
  const char* bytes_;
  int64_t left_;
};

// All fields of a state in one order, for both ways.
template <class Archive, class State>
void each_field(Archive& archive, State& clip) {
  archive(clip.length);
  archive(clip.ended);
  for (auto& part : clip.parts) {
    archive(part.emitted);
    archive(part.lstm);
    for (auto& stage : part.chain) {
      auto& progress = stage.progress;
      for (auto* count : {&progress.length, &progress.next, &progress.begin}) archive(*count);
      archive(progress.started);
      archive(progress.ended);
      archive(stage.kept);
    }
  }
}

// Whether the engine can go on from there: what it indexes by lies inside what it holds.
bool sound(const Window& window, const StageState& stage) {
  const Progress& p = stage.progress;
  const int64_t most = INT64_MAX / 4 / window.channels;
  return 0 <= p.length && p.length < most && 0 <= p.begin && p.begin <= p.next && p.next < most &&
         p.next % window.stride == 0 && p.begin <= window.pad_left + p.length &&
         (p.started || p.begin == 0) &&
         (static_cast<int64_t>(stage.kept.size()) == window.held(p) * window.channels ||
          (stage.kept.empty() && p.length == 0));  // not pushed yet
}

}  // namespace

void encodec_program::save(const ClipState& clip, std::vector<char>& bytes) const {
  Writer writer(bytes);
  writer(kMark);
  each_field(writer, clip);
}

ClipState encodec_program::load(const char* bytes, int64_t size) const {
  Reader reader(bytes, size);
  int64_t mark = 0;
  reader(mark);
  Reader::require(mark == kMark);
  const ClipState fresh = open();
  ClipState clip = fresh;
  each_field(reader, clip);
  reader.end();
  for (size_t i = 0; i < parts.size(); ++i) {
    Reader::require(clip.parts[i].lstm.size() == fresh.parts[i].lstm.size());
    for (size_t j = 0; j < clip.parts[i].chain.size(); ++j)
      Reader::require(sound(parts[i].chain->window(j), clip.parts[i].chain[j]));
  }
  return clip;
}
