// Random programs and clips, for the fuzzes of the engine.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "api/engine.h"

namespace recipes {

using Clip = std::vector<std::vector<float>>;  // [C][T]

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t bound) { return static_cast<int64_t>(next() % static_cast<uint64_t>(bound)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  float uniform() { return static_cast<float>(static_cast<int64_t>(next() >> 40) - (1 << 23)) * 0x1p-23f; }
  std::vector<float> floats(int64_t count, float scale) {
    std::vector<float> values(count);
    for (float& value : values) value = uniform() * scale;
    return values;
  }

 private:
  uint64_t state_;
};

inline void fail(const std::string& what) {
  std::printf("FAILED: %s (%s)\n", what.c_str(), encodec_error());
  std::exit(1);
}

// A program as data, built once per tier.
struct Recipe {
  struct Stage {
    int kind;  // 0 convolution, 1 residual block, 2 upsample, 3 LSTM
    encodec_conv convs[3];
    bool shortcut;
    int64_t channels, layers;
    std::vector<const float*> weights;
  };
  std::vector<Stage> stages;
  std::vector<std::unique_ptr<std::vector<float>>> memory;
  int64_t in_channels = 0, out_channels = 0;
  bool whole = false;

  const float* keep(std::vector<float> values) {
    memory.push_back(std::make_unique<std::vector<float>>(std::move(values)));
    return memory.back()->data();
  }
};

inline encodec_conv random_conv(Random& random, Recipe& recipe, int64_t in, int64_t out, int64_t kernel, int64_t stride,
                                int64_t dilation, bool causal) {
  encodec_conv conv = {};
  const int64_t padding = (kernel - 1) * dilation + 1 - stride;
  conv.in_channels = in;
  conv.out_channels = out;
  conv.kernel = kernel;
  conv.stride = stride;
  conv.dilation = dilation;
  conv.pad_right = causal ? 0 : padding / 2;
  conv.pad_left = padding - conv.pad_right;
  conv.pad_mode = random.below(3);
  conv.activation = random.below(2);
  conv.weight = recipe.keep(random.floats(in * out * kernel, 1.0f / static_cast<float>(in)));
  if (random.below(4)) conv.bias = recipe.keep(random.floats(out, 0.1f));
  if (recipe.whole) {
    conv.norm_weight = recipe.keep(random.floats(out, 1.0f));
    conv.norm_bias = recipe.keep(random.floats(out, 0.1f));
    conv.norm_eps = 1e-5;
  }
  return conv;
}

inline Recipe::Stage random_residual(Random& random, Recipe& recipe, int64_t channels, int64_t hidden, int64_t kernel,
                                     int64_t dilation, bool causal, bool shortcut) {
  Recipe::Stage stage = {};
  stage.kind = 1;
  stage.shortcut = shortcut;
  stage.convs[0] = random_conv(random, recipe, channels, hidden, kernel, 1, dilation, causal);
  stage.convs[1] = random_conv(random, recipe, hidden, channels, 1, 1, 1, causal);
  stage.convs[2] = random_conv(random, recipe, channels, channels, 1, 1, 1, causal);
  stage.convs[0].activation = stage.convs[1].activation = 1;
  stage.convs[2].activation = 0;
  return stage;
}

inline Recipe random_recipe(Random& random) {
  Recipe recipe;
  recipe.whole = random.below(4) == 0;
  int64_t channels = recipe.in_channels = random.between(1, 5);
  for (int64_t count = random.between(1, 5), i = 0; i < count; ++i) {
    Recipe::Stage stage = {};
    const bool causal = random.below(3) != 0;
    const int64_t out = random.below(2) ? random.between(1, 9) : random.between(10, 40);
    const int64_t stride = random.between(1, 4);
    stage.kind = static_cast<int>(random.below(4));
    if (stage.kind == 0) {
      const int64_t kernel = stride + random.below(5), dilation = stride == 1 ? random.between(1, 3) : 1;
      stage.convs[0] = random_conv(random, recipe, channels, out, kernel, stride, dilation, causal);
      channels = out;
    } else if (stage.kind == 1) {
      const int64_t hidden = random.between(1, 12), kernel = random.between(1, 4), dilation = random.between(1, 3);
      const bool shortcut = random.below(2) != 0;
      stage = random_residual(random, recipe, channels, hidden, kernel, dilation, causal, shortcut);
    } else if (stage.kind == 2) {
      stage.convs[0] = random_conv(random, recipe, channels, out, stride * random.between(1, 3), stride, 1, causal);
      channels = out;
    } else {
      stage.channels = channels;
      stage.layers = random.between(1, 3);
      for (int64_t layer = 0; layer < stage.layers; ++layer) {
        stage.weights.push_back(recipe.keep(random.floats(4 * channels * channels, 0.4f)));
        stage.weights.push_back(recipe.keep(random.floats(4 * channels * channels, 0.4f)));
        stage.weights.push_back(recipe.keep(random.floats(4 * channels, 0.1f)));
        stage.weights.push_back(recipe.keep(random.floats(4 * channels, 0.1f)));
      }
    }
    recipe.stages.push_back(std::move(stage));
  }
  recipe.out_channels = channels;
  return recipe;
}

inline encodec_program* build(const Recipe& recipe, const char* tier) {
  encodec_program* program = encodec_program_new(tier);
  if (!program) fail("encodec_program_new");
  for (const Recipe::Stage& stage : recipe.stages) {
    int status = 0;
    if (stage.kind == 0) status = encodec_add_conv(program, &stage.convs[0]);
    if (stage.kind == 1)
      status = encodec_add_residual(program, &stage.convs[0], &stage.convs[1], stage.shortcut ? &stage.convs[2] : nullptr);
    if (stage.kind == 2) status = encodec_add_upsample(program, &stage.convs[0]);
    if (stage.kind == 3) status = encodec_add_lstm(program, stage.channels, stage.layers, stage.weights.data());
    if (status) fail("adding a stage");
  }
  return program;
}

// Clips in the interface's form.
class Clips {
 public:
  Clips(const std::vector<Clip>& clips, const std::vector<int64_t>& first, const std::vector<int64_t>& lengths)
      : lengths_(lengths) {
    for (size_t b = 0; b < clips.size(); ++b) {
      std::vector<float> flat;
      for (const std::vector<float>& channel : clips[b])
        flat.insert(flat.end(), channel.begin() + first[b], channel.begin() + first[b] + lengths[b]);
      memory_.push_back(std::move(flat));
    }
    for (std::vector<float>& flat : memory_) data_.push_back(flat.data());
  }
  Clips(int64_t channels, const std::vector<int64_t>& lengths) : lengths_(lengths) {
    for (int64_t length : lengths) memory_.emplace_back(channels * length);
    for (std::vector<float>& flat : memory_) data_.push_back(flat.data());
  }
  encodec_clips record() const { return {data_.data(), lengths_.data(), lengths_.data()}; }
  void append_to(std::vector<Clip>& clips) const {
    for (size_t b = 0; b < clips.size(); ++b)
      for (size_t c = 0; c < clips[b].size(); ++c) {
        const float* row = data_[b] + c * lengths_[b];
        clips[b][c].insert(clips[b][c].end(), row, row + lengths_[b]);
      }
  }

 private:
  std::vector<std::vector<float>> memory_;
  std::vector<float*> data_;
  std::vector<int64_t> lengths_;
};

inline int64_t length_of(const Clip& clip) { return static_cast<int64_t>(clip[0].size()); }

}  // namespace recipes
