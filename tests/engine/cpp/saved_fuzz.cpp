// Forged states of random programs, for a build with sanitizers. A state whose counts differ in any bit from those that the program
// gives a clip of its length must be refused; one whose floats differ goes on. So does a segment's state of the language model, wherever
// it is not refused. Prints what was tried per case; exits 1, naming the case, where a state passed that should not.
//
//     saved_fuzz FIRST_CASE CASES
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "recipes.h"
#include "segments.h"

using namespace recipes;

namespace {

using Bytes = std::vector<char>;

Bytes saved(const encodec_state* state) {
  Bytes bytes(encodec_save(state, nullptr, 0));
  if (encodec_save(state, bytes.data(), static_cast<int64_t>(bytes.size())) < 0) fail("encodec_save");
  return bytes;
}

int64_t read(const Bytes& bytes, size_t at) {
  int64_t value = 0;
  std::memcpy(&value, &bytes[at], sizeof value);
  return value;
}

void write(Bytes& bytes, size_t at, int64_t value) { std::memcpy(&bytes[at], &value, sizeof value); }

// Where the whole numbers of a state lie: the mark, the clip's length and end, and then those of its stages. All else is floats.
std::vector<size_t> fields_of(const Recipe& recipe, const Bytes& bytes) {
  std::vector<size_t> fields = {0, 8, 16};
  size_t at = 24;
  const auto whole = [&](int count) {
    for (int i = 0; i < count; ++i, at += 8) fields.push_back(at);
  };
  const auto floats = [&] {
    const int64_t count = read(bytes, at);
    whole(1);
    at += 4 * count;
  };
  for (size_t i = 0; i < recipe.stages.size();) {
    whole(1);  // outputs so far
    floats();  // h and c
    if (recipe.stages[i].kind == 3)
      ++i;
    else
      for (; i < recipe.stages.size() && recipe.stages[i].kind != 3; ++i) {
        whole(5);
        floats();
      }
  }
  if (at != bytes.size()) fail("a state has another layout than this fuzz knows");
  return fields;
}

void push(encodec_state* state, const Recipe& recipe, Random& random, int64_t steps, int64_t final) {
  std::vector<Clip> clips(1, Clip(recipe.in_channels));
  for (std::vector<float>& channel : clips[0]) channel = random.floats(steps, 1.0f);
  int64_t ready = 0;
  if (encodec_ready(&state, 1, &steps, &final, &ready)) fail("encodec_ready");
  if (ready < 0 || ready > 100000) fail("a state gives " + std::to_string(ready) + " steps");
  const Clips x(clips, {0}, {steps}), y(recipe.out_channels, {ready});
  const encodec_clips in = x.record(), out = y.record();
  if (encodec_push(&state, 1, &in, &final, 1, &out)) fail("encodec_push");
}

// Pushes some steps and then the end, and closes the state.
void go_on(encodec_state* state, const Recipe& recipe, Random& random, bool ended) {
  if (!ended && !recipe.whole) push(state, recipe, random, random.between(0, 30), 0);
  if (!ended) push(state, recipe, random, random.between(0, 30), 1);
  encodec_close(state);
}

// A clip of the program, some pushes after its start.
encodec_state* on_its_way(const encodec_program* program, const Recipe& recipe, Random& random) {
  encodec_state* state = encodec_open(program);
  if (!state) fail("encodec_open");
  const int64_t pushes = random.below(recipe.whole ? 2 : 4);
  for (int64_t i = 1; i <= pushes; ++i)
    push(state, recipe, random, random.between(0, 20), recipe.whole || (i == pushes && random.below(4) == 0));
  return state;
}

class Forger {
 public:
  Forger(const encodec_program* program, const Recipe& recipe, Bytes bytes, Random& random)
      : program_(program), recipe_(recipe), bytes_(std::move(bytes)), fields_(fields_of(recipe, bytes_)), random_(random) {
    bool counts_steps = false;  // an LSTM by itself does not: there any length will do
    for (const Recipe::Stage& stage : recipe.stages) counts_steps = counts_steps || stage.kind != 3;
    if (!counts_steps) fields_.erase(fields_.begin() + 1, fields_.begin() + 3);
  }

  void change_every_field() {
    for (size_t field : fields_) {
      for (int64_t step : {-1, 1, 2, -8, 1 << 20}) must_be_refused(field, read(bytes_, field) + step);
      for (int64_t value : {INT64_MIN, INT64_MAX, INT64_MAX / 2, int64_t{-1}, int64_t{0}, int64_t{1}})
        if (value != read(bytes_, field)) must_be_refused(field, value);
    }
  }

  void flip_every_byte() {
    std::vector<bool> whole(bytes_.size(), false);
    for (size_t field : fields_) std::fill_n(whole.begin() + static_cast<int64_t>(field), 8, true);
    for (size_t at = 0; at < bytes_.size(); ++at) {
      Bytes forged = bytes_;
      forged[at] = static_cast<char>(forged[at] ^ random_.between(1, 255));
      encodec_state* state = load(forged);
      if (state && whole[at]) fail("a state passed with byte " + std::to_string(at) + " flipped");
      if (!state && !whole[at] && at >= 24) fail("a state was refused for a float");
      if (state) at % 61 ? encodec_close(state) : go_on(state, recipe_, random_, read(forged, 16) != 0);
    }
  }

  // Several at once, by little: what passes must be able to go on.
  void change_fields_together() {
    for (int round = 0; round < 200; ++round) {
      Bytes forged = bytes_;
      for (int64_t count = random_.between(1, 6); count > 0; --count) {
        const size_t field = fields_[random_.below(static_cast<int64_t>(fields_.size()))];
        const size_t other = fields_[random_.below(static_cast<int64_t>(fields_.size()))];
        write(forged, field, random_.below(3) ? read(forged, field) + random_.between(-3, 3) : read(forged, other));
      }
      if (encodec_state* state = load(forged)) go_on(state, recipe_, random_, read(forged, 16) != 0);
    }
  }

  int64_t tried() const { return tried_; }
  int64_t refused() const { return refused_; }

 private:
  encodec_state* load(const Bytes& bytes) {
    encodec_state* state = encodec_load(program_, bytes.data(), static_cast<int64_t>(bytes.size()));
    ++tried_;
    refused_ += state == nullptr;
    return state;
  }

  void must_be_refused(size_t field, int64_t value) {
    Bytes forged = bytes_;
    write(forged, field, value);
    if (load(forged)) fail("a state passed with " + std::to_string(value) + " at " + std::to_string(field));
  }

  const encodec_program* program_;
  const Recipe& recipe_;
  const Bytes bytes_;
  std::vector<size_t> fields_;
  Random& random_;
  int64_t tried_ = 0, refused_ = 0;
};

void forged_case(int64_t number) {
  Random random(number);
  const Recipe recipe = random_recipe(random);
  encodec_program* program = build(recipe, nullptr);
  encodec_state* state = on_its_way(program, recipe, random);
  Forger forger(program, recipe, saved(state), random);
  forger.change_every_field();
  forger.flip_every_byte();
  forger.change_fields_together();
  encodec_close(state);
  encodec_program_free(program);
  std::printf("%lld: %lld tried, %lld refused", static_cast<long long>(number), static_cast<long long>(forger.tried()),
              static_cast<long long>(forger.refused()));
}

// Codes the rest of a segment. A float that is not finite may end it; no other error may.
void go_on(encodec_segment* segment, const segments::Segment& all, bool decodes) {
  segments::Segment copy = all;
  int64_t* codes = copy.codes.data();
  const int64_t *places[] = {codes}, frames = std::min<int64_t>(5, all.frames);
  const int failed = decodes ? encodec_decode(&segment, 1, &codes, &all.frames, &frames, 1)
                             : encodec_encode(&segment, 1, places, &all.frames, &frames, 1);
  const std::string error = failed ? encodec_error() : "";
  if (failed && error.find("not finite") == error.npos && error.find("at most as many frames") == error.npos &&
      error.find("has ended") == error.npos)
    fail("a forged segment");
  segments::Bytes bytes;
  if (!failed && !decodes) segments::take(segment, true, bytes);
}

// Flips every byte of a segment's state; what passes goes on.
void forged_segment_case(int64_t number) {
  Random random(number);
  segments::ModelRecipe recipe = segments::random_model(random);
  encodec_lm* model = segments::build(recipe, nullptr);
  segments::Segment all = {recipe.sizes.codebooks, 5 + random.below(10), {}};
  for (int64_t i = 0; i < all.levels * all.frames; ++i) all.codes.push_back(random.below(recipe.sizes.codebook_size));
  const segments::Bytes payload = segments::encoded(model, {all}, 1, 1, random)[0];
  int64_t tried = 0, refused = 0;
  for (const bool decodes : {false, true}) {
    const auto size = static_cast<int64_t>(payload.size());
    encodec_segment* segment = decodes ? encodec_segment_decode(model, all.levels, 100, payload.data(), size)
                                       : encodec_segment_encode(model, all.levels, 100);
    go_on(segment, all, decodes);
    const std::vector<char> bytes = segments::saved(segment);
    encodec_segment_close(segment);
    for (size_t at = 0; at < bytes.size(); ++at, ++tried) {
      if (at > 400 && random.below(20)) continue;  // but for some, floats
      std::vector<char> forged = bytes;
      forged[at] = static_cast<char>(forged[at] ^ random.between(1, 255));
      encodec_segment* again = encodec_segment_load(model, forged.data(), static_cast<int64_t>(forged.size()));
      refused += again == nullptr;
      if (!again) continue;
      if (encodec_segment_levels(again, decodes) == all.levels) go_on(again, all, decodes);
      encodec_segment_close(again);
    }
    if (encodec_segment_load(model, bytes.data(), static_cast<int64_t>(bytes.size()) - 1)) fail("a segment's state passed that was cut");
  }
  encodec_lm_free(model);
  std::printf(", of a segment %lld tried, %lld refused\n", static_cast<long long>(tried), static_cast<long long>(refused));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return std::printf("usage: saved_fuzz FIRST_CASE CASES\n"), 2;
  const int64_t first = std::atoll(arguments[1]), cases = std::atoll(arguments[2]);
  for (int64_t number = first; number < first + cases; ++number) forged_case(number), forged_segment_case(number);
  return 0;
}
