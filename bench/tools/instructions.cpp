// Runs every kernel of the CPU engine once under callgrind, which counts the instructions of that run alone.
//
// The layers have the widths of the 24 kHz model and a few dozen steps. Each runs twice: the first run, uncounted, is the one
// that allocates what is kept. One line "name" on standard output per dump, in the order of the dumps.
#include <valgrind/callgrind.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "api/engine.h"

namespace {

const char* tier;

std::vector<float> noise(size_t count, float scale) {
  std::vector<float> values(count);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = scale * (static_cast<int32_t>(state >> 8) / 8388608.0f - 1.0f);
  }
  return values;
}

void require(bool right) {
  if (right) return;
  std::fprintf(stderr, "%s\n", encodec_error());
  std::exit(1);
}

void count(const char* name, const std::function<void()>& run) {
  run();
  CALLGRIND_ZERO_STATS;
  CALLGRIND_TOGGLE_COLLECT;
  run();
  CALLGRIND_TOGGLE_COLLECT;
  CALLGRIND_DUMP_STATS_AT(name);
  std::puts(name);
}

// One push of a whole clip through a program of one stage.
void stage(const char* name, int64_t in_channels, int64_t out_channels, int64_t steps,
           const std::function<int(encodec_program*)>& add) {
  encodec_program* program = encodec_program_new(tier);
  require(program && add(program) >= 0);
  std::vector<float> x = noise(in_channels * steps, 0.5f);
  count(name, [&] {
    encodec_state* state = encodec_open(program);
    require(state);
    const int64_t final = 1;
    int64_t length = 0;
    require(encodec_ready(&state, 1, &steps, &final, &length) >= 0);
    std::vector<float> y(out_channels * length);
    float *from = x.data(), *to = y.data();
    const encodec_clips in{&from, &steps, &steps}, out{&to, &length, &length};
    require(encodec_push(&state, 1, &in, &final, 1, &out) >= 0);
    encodec_close(state);
  });
  encodec_program_free(program);
}

struct Layer {
  std::vector<float> weight, bias, norm;
  encodec_conv conv;
  Layer(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t left, int64_t right, bool activated, bool normed = false)
      : weight(noise(in * out * kernel, 0.1f)), bias(noise(out, 0.1f)), norm(noise(out, 1.0f)),
        conv{in, out, kernel, stride, 1, left, right, 0, activated, weight.data(), bias.data(),
             normed ? norm.data() : nullptr, normed ? norm.data() : nullptr, 1e-5} {}
};

void conv(const char* name, const Layer& layer, int64_t steps) {
  stage(name, layer.conv.in_channels, layer.conv.out_channels, steps,
        [&](encodec_program* program) { return encodec_add_conv(program, &layer.conv); });
}

}  // namespace

int main(int, char** arguments) {
  tier = arguments[1];
  conv("first_convolution", Layer(1, 32, 7, 1, 6, 0, false), 960);
  conv("strided_convolution", Layer(64, 128, 8, 4, 4, 0, true), 480);
  conv("group_norm_convolution", Layer(32, 64, 4, 2, 1, 1, true, true), 480);
  conv("last_convolution", Layer(32, 1, 7, 1, 6, 0, true), 960);
  const Layer conv1(64, 32, 3, 1, 2, 0, true), conv2(32, 64, 1, 1, 0, 0, true), shortcut(64, 64, 1, 1, 0, 0, false);
  stage("residual_block", 64, 64, 240, [&](encodec_program* program) {
    return encodec_add_residual(program, &conv1.conv, &conv2.conv, &shortcut.conv);
  });
  const Layer upsample(128, 64, 8, 4, 0, 4, true);
  stage("upsampling", 128, 64, 60, [&](encodec_program* program) { return encodec_add_upsample(program, &upsample.conv); });
  const std::vector<float> gates = noise(4 * 256 * 256, 0.05f), gate_bias = noise(4 * 256, 0.1f);
  const float* layers[] = {gates.data(), gates.data(), gate_bias.data(), gate_bias.data(),
                           gates.data(), gates.data(), gate_bias.data(), gate_bias.data()};
  stage("lstm", 256, 256, 16, [&](encodec_program* program) { return encodec_add_lstm(program, 256, 2, layers); });

  const int64_t levels = 4, size = 1024, dim = 128, frames = 24;
  const std::vector<float> entries = noise(levels * size * dim, 1.0f);
  encodec_codebooks* codebooks = encodec_codebooks_new(tier, entries.data(), levels, size, dim);
  require(codebooks);
  std::vector<float> x = noise(dim * frames, 1.0f);
  std::vector<int64_t> codes(levels * frames);
  float* values = x.data();
  const encodec_clips clips{&values, &frames, &frames};
  count("search", [&] { require(encodec_search_batch(codebooks, 1, values, frames, 0, frames, levels, 1, codes.data()) >= 0); });
  const int64_t* from = codes.data();
  count("sum_of_entries", [&] { require(encodec_lookup(codebooks, &from, &frames, 1, levels, 1, &clips) == 0); });
  encodec_codebooks_free(codebooks);
}
