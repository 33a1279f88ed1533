// A push that runs out of memory fails, and the next one works: threads keep their buffers between calls.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "api/engine.h"

static size_t most = SIZE_MAX;

// In place of the C library's, for the engine too.
extern "C" void* aligned_alloc(size_t alignment, size_t bytes) {
  void* memory = nullptr;
  return bytes > most || posix_memalign(&memory, alignment, bytes) ? nullptr : memory;
}

static int push(const encodec_program* program, int64_t steps) {
  std::vector<float> x(steps, 1.0f), y(8 * steps);
  float *in = x.data(), *out = y.data();
  const int64_t final = 1;
  const encodec_clips clips = {&in, &steps, &steps}, results = {&out, &steps, &steps};
  encodec_state* state = encodec_open(program);
  const int failed = encodec_push(&state, 1, &clips, &final, 1, &results);
  encodec_close(state);
  return failed;
}

int main() {
  const std::vector<float> weight(8 * 7, 0.1f);
  encodec_conv conv = {};
  conv.in_channels = conv.stride = conv.dilation = conv.pad_mode = 1;
  conv.out_channels = 8;
  conv.kernel = 7;
  conv.pad_left = 6;
  conv.weight = weight.data();
  encodec_program* program = encodec_program_new(nullptr);
  const bool built = encodec_add_conv(program, &conv) == 0;
  const bool first = push(program, 1000) == 0;
  most = 40000;
  const bool refused = push(program, 20000) != 0;
  most = SIZE_MAX;
  const bool again = push(program, 1000) == 0;
  encodec_program_free(program);
  std::printf("built %d, first %d, refused %d, again %d\n", built, first, refused, again);
  return built && first && refused && again ? 0 : 1;
}
