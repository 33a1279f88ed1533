// Random language models and segments, for the fuzzes of the engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "recipes.h"

namespace segments {

using namespace recipes;
using Bytes = std::vector<uint8_t>;

struct Segment {
  int64_t levels, frames;
  std::vector<int64_t> codes;  // [levels, frames]
};

struct ModelRecipe {
  encodec_lm_sizes sizes;
  std::vector<std::vector<float>> weights;
  std::vector<float> divisors;
};

inline ModelRecipe random_model(Random& random) {
  ModelRecipe recipe = {};
  encodec_lm_sizes& sizes = recipe.sizes;
  sizes.heads = random.between(1, 6);
  sizes.dim = 2 * sizes.heads * (random.below(8) ? random.between(1, 5) : random.between(9, 20));
  sizes.codebooks = random.between(1, 4);
  sizes.codebook_size = random.between(1, 100);
  sizes.layers = random.between(1, 2);
  sizes.hidden = random.below(8) ? random.between(1, 40) : random.between(257, 270);
  sizes.past_context = random.between(1, 70);
  const auto add = [&](int64_t count, float scale) { recipe.weights.push_back(random.floats(count, scale)); };
  const auto add_norm = [&] {
    add(sizes.dim, 1.0f);
    for (float& weight : recipe.weights.back()) weight += 1.0f;
    add(sizes.dim, 0.1f);
  };
  const int64_t dim = sizes.dim;
  const float scale = 3.0f / static_cast<float>(dim);
  for (int64_t k = 0; k < sizes.codebooks; ++k) add((sizes.codebook_size + 1) * dim, 1.0f);
  add_norm();
  for (int64_t layer = 0; layer < sizes.layers; ++layer) {
    for (int64_t out : {3 * dim, dim, sizes.hidden}) add(out * dim, scale), add(out, 0.1f);
    add(dim * sizes.hidden, 0.2f), add(dim, 0.1f);
    add_norm();
    add_norm();
  }
  for (int64_t k = 0; k < sizes.codebooks; ++k) add(sizes.codebook_size * dim, 2 * scale), add(sizes.codebook_size, 0.1f);
  // exact, whether a compiler fuses the product and the sum or not
  for (int64_t i = 0; i < dim / 2; ++i) recipe.divisors.push_back(1.0f + 0.0625f * static_cast<float>(random.below(1000)));
  return recipe;
}

inline encodec_lm* build(const ModelRecipe& recipe, const char* tier) {
  std::vector<const float*> weights;
  for (const std::vector<float>& values : recipe.weights) weights.push_back(values.data());
  encodec_lm* model = encodec_lm_new(tier, &recipe.sizes, weights.data(), recipe.divisors.data());
  if (!model) fail("encodec_lm_new");
  return model;
}

inline std::vector<Segment> random_segments(Random& random, const ModelRecipe& recipe) {
  std::vector<Segment> found(random.between(1, 5));
  for (Segment& segment : found) {
    segment.levels = random.between(1, recipe.sizes.codebooks);
    segment.frames = random.below(4) ? random.between(0, 20) : random.between(60, 150);
    for (int64_t i = 0; i < segment.levels * segment.frames; ++i) segment.codes.push_back(random.below(recipe.sizes.codebook_size));
  }
  return found;
}

inline std::vector<char> saved(const encodec_segment* segment) {
  std::vector<char> bytes(encodec_segment_save(segment, nullptr, 0));
  if (encodec_segment_save(segment, bytes.data(), static_cast<int64_t>(bytes.size())) < 0) fail("encodec_segment_save");
  return bytes;
}

inline encodec_segment* reopened(const encodec_lm* model, encodec_segment* segment) {
  const std::vector<char> bytes = saved(segment);
  encodec_segment_close(segment);
  encodec_segment* again = encodec_segment_load(model, bytes.data(), static_cast<int64_t>(bytes.size()));
  if (!again) fail("encodec_segment_load");
  return again;
}

inline void take(encodec_segment* segment, bool final, Bytes& bytes) {
  const int64_t count = encodec_segment_bytes(segment, final, nullptr, 0);
  if (count < 0) fail("encodec_segment_bytes");
  bytes.resize(bytes.size() + count);
  // a vector without bytes may have no address
  uint8_t none = 0;
  if (encodec_segment_bytes(segment, final, count ? bytes.data() + bytes.size() - count : &none, count) != count)
    fail("encodec_segment_bytes, taken");
}

// Runs the frames of all segments in pieces through `step`, with a save and a load between some of them.
template <class Step>
void in_pieces(const encodec_lm* model, std::vector<encodec_segment*>& open, const std::vector<Segment>& all, int pieces, Random& random,
               const Step& step) {
  std::vector<int64_t> done(all.size(), 0), frames(all.size()), strides(all.size());
  for (int piece = 1; piece <= pieces; ++piece) {
    for (size_t b = 0; b < all.size(); ++b) {
      const int64_t left = all[b].frames - done[b];
      frames[b] = piece == pieces ? left : random.below(left + 1);
      strides[b] = all[b].frames;
      if (piece > 1 && random.below(3) == 0) open[b] = reopened(model, open[b]);
    }
    step(done, frames, strides);
    for (size_t b = 0; b < all.size(); ++b) done[b] += frames[b];
  }
}

inline std::vector<Bytes> encoded(const encodec_lm* model, const std::vector<Segment>& all, int threads, int pieces, Random& random) {
  std::vector<Bytes> payloads(all.size());
  std::vector<encodec_segment*> open;
  const auto batch = static_cast<int64_t>(all.size());
  for (const Segment& each : all) {
    open.push_back(encodec_segment_encode(model, each.levels, random.below(2) ? each.frames : INT32_MAX));
    if (!open.back()) fail("encodec_segment_encode");
  }
  in_pieces(model, open, all, pieces, random, [&](const auto& done, const auto& frames, const auto& strides) {
    std::vector<const int64_t*> codes;
    for (size_t b = 0; b < all.size(); ++b) codes.push_back(all[b].codes.data() + done[b]);
    if (encodec_encode(open.data(), batch, codes.data(), strides.data(), frames.data(), threads)) fail("encodec_encode");
    for (size_t b = 0; b < all.size(); ++b) take(open[b], false, payloads[b]);
  });
  for (size_t b = 0; b < all.size(); ++b) {
    take(open[b], true, payloads[b]);
    encodec_segment_close(open[b]);
  }
  return payloads;
}

// The segments' codes, with other values in them.
inline std::vector<Segment> decoded(const encodec_lm* model, std::vector<Segment> all, const std::vector<Bytes>& payloads, int threads,
                                    int pieces, Random& random, bool whole) {
  std::vector<encodec_segment*> open;
  const auto batch = static_cast<int64_t>(all.size());
  for (size_t b = 0; b < all.size(); ++b) {
    std::fill(all[b].codes.begin(), all[b].codes.end(), -7);
    const auto size = static_cast<int64_t>(payloads[b].size());
    open.push_back(encodec_segment_decode(model, all[b].levels, all[b].frames, payloads[b].data(), size));
    if (!open.back()) fail("encodec_segment_decode");
  }
  in_pieces(model, open, all, pieces, random, [&](const auto& done, const auto& frames, const auto& strides) {
    std::vector<int64_t*> codes;
    for (size_t b = 0; b < all.size(); ++b) codes.push_back(all[b].codes.data() + done[b]);
    if (encodec_decode(open.data(), batch, codes.data(), strides.data(), frames.data(), threads)) fail("encodec_decode");
  });
  for (encodec_segment* segment : open) {
    if (whole && encodec_segment_used_up(segment) != 1) fail("a payload was not used up");
    encodec_segment_close(segment);
  }
  return all;
}

}  // namespace segments
