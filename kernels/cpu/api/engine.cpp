#include "api/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "api/guard.h"
#include "net/chunks.h"
#include "net/codebooks.h"
#include "net/cuts.h"
#include "net/program.h"
#include "runtime/threads.h"
#include "simd/tiers.h"

using namespace encodec;

struct encodec_state {
  encodec_state(const encodec_program* program, ClipState clip) : program(program), clip(std::move(clip)) {}

  const encodec_program* program;
  ClipState clip;
  mutable std::atomic<bool> taken = false;  // by a call
  bool broken = false;                      // by a push that failed half way
};

namespace {

void require_conv(const encodec_conv& conv) {
  require(conv.in_channels > 0 && conv.out_channels > 0 && conv.kernel > 0 && conv.stride > 0 && conv.dilation > 0,
          "a convolution's channels, kernel, stride and dilation are positive");
  require(conv.pad_left >= 0 && conv.pad_right >= 0, "a convolution's padding is not negative");
  require(conv.pad_mode >= 0 && conv.pad_mode <= 2, "pad_mode is 0 (reflect), 1 (constant) or 2 (replicate)");
  require(conv.activation >= 0 && conv.activation < kActivations, "activation is 0 (none) or 1 (ELU)");
  require(conv.weight != nullptr, "a convolution has weights");
}

// Clips of one length that lie in one tensor.
class Batch {
 public:
  Batch(int64_t batch, const float* data, int64_t steps, int64_t clip_stride, int64_t channel_stride)
      : lengths_(batch, steps), strides_(batch, channel_stride) {
    // what is only read is read through the same record as what is written
    for (int64_t b = 0; b < batch; ++b) data_.push_back(const_cast<float*>(data) + b * clip_stride);
  }
  encodec_clips clips() const { return {data_.data(), lengths_.data(), strides_.data()}; }

 private:
  std::vector<float*> data_;
  std::vector<int64_t> lengths_, strides_;
};

void require_whole(const encodec_state& state) { require(!state.broken, "a push of this clip failed half way: open a new state"); }

int64_t ready(const encodec_state& state, int64_t added, bool final) {
  require(added >= 0, "a piece has no negative length");
  require_whole(state);
  return state.clip.ended ? 0 : state.program->ready(state.clip, added, final);
}

bool pads_to_same(const encodec_conv& conv) {
  return conv.pad_left + conv.pad_right == (conv.kernel - 1) * conv.dilation + 1 - conv.stride;
}

}  // namespace

int64_t encodec_abi(void) { return ENCODEC_ABI; }

const char* encodec_error(void) { return last_error().c_str(); }

const char* encodec_tier(int64_t n) {
  const Ops* ops = tier(n);
  return ops ? ops->name : nullptr;
}

encodec_program* encodec_program_new(const char* tier) {
  return guarded_new([&] { return new encodec_program(find_tier(tier)); });
}

void encodec_program_free(encodec_program* program) { delete program; }

int encodec_add_conv(encodec_program* program, const encodec_conv* conv) {
  return guarded([&] {
    require_conv(*conv);
    require(pads_to_same(*conv), "a convolution is padded by its receptive field less its stride");
    program->append(make_conv(program->ops, *conv));
  });
}

int encodec_add_residual(encodec_program* program, const encodec_conv* conv1, const encodec_conv* conv2,
                         const encodec_conv* shortcut) {
  return guarded([&] {
    require_conv(*conv1);
    require_conv(*conv2);
    require(conv1->stride == 1 && pads_to_same(*conv1), "a residual block's first convolution keeps the length");
    require(conv2->kernel == 1 && conv2->stride == 1 && conv2->in_channels == conv1->out_channels,
            "a residual block's second convolution is 1x1 over the first one's output");
    require(!conv1->norm_weight == !conv2->norm_weight && (!shortcut || !conv1->norm_weight == !shortcut->norm_weight),
            "all convolutions of a residual block have a group norm or none has");
    require(shortcut || conv1->in_channels == conv2->out_channels, "an identity shortcut keeps the channels");
    if (shortcut) {
      require_conv(*shortcut);
      require(shortcut->kernel == 1 && shortcut->stride == 1 && shortcut->activation == 0 &&
                  shortcut->in_channels == conv1->in_channels && shortcut->out_channels == conv2->out_channels,
              "a residual block's shortcut is 1x1, without an activation, from its input to its output");
    }
    program->append(make_residual(program->ops, *conv1, *conv2, shortcut));
  });
}

int encodec_add_upsample(encodec_program* program, const encodec_conv* conv) {
  return guarded([&] {
    require_conv(*conv);
    require(conv->kernel % conv->stride == 0, "a transposed convolution's kernel is a multiple of its stride");
    require(conv->pad_left + conv->pad_right <= conv->kernel - conv->stride,
            "a transposed convolution is trimmed by at most its kernel less its stride");
    program->append(make_upsample(program->ops, *conv));
  });
}

int encodec_add_lstm(encodec_program* program, int64_t channels, int64_t layers, const float* const* weights) {
  return guarded([&] {
    require(channels > 0 && layers > 0, "an LSTM has channels and layers");
    program->append(Lstm(program->ops, channels, layers, weights));
  });
}

int64_t encodec_output_length(const encodec_program* program, int64_t steps) {
  int64_t length = 0;
  const int failed = guarded([&] {
    require(!program->parts.empty(), "a program has at least one stage");
    require(steps >= 0, "a piece has no negative length");
    length = program->ready(program->open(), steps, true);
  });
  return failed ? failed : length;
}

int encodec_run(const encodec_program* program, int64_t batch, const float* x, int64_t x_steps, int64_t x_clip_stride,
                int64_t x_channel_stride, int threads, float* y, int64_t y_steps, int64_t y_clip_stride, int64_t y_channel_stride) {
  return guarded([&] {
    require(!program->parts.empty(), "a program has at least one stage");
    require(batch >= 0 && x_steps >= 0, "a batch and its clips have no negative length");
    std::vector<ClipState> states(batch, program->open());
    std::vector<ClipState*> clips;
    for (ClipState& state : states) clips.push_back(&state);
    if (clips.empty()) return;
    require(y_steps == program->ready(states[0], x_steps, true), "an output is as long as encodec_output_length says");
    const Batch from(batch, x, x_steps, x_clip_stride, x_channel_stride), to(batch, y, y_steps, y_clip_stride, y_channel_stride);
    const std::vector<int64_t> final(batch, 1);
    program->push(clips, from.clips(), final.data(), std::max(1, threads), to.clips());
  });
}

encodec_state* encodec_open(const encodec_program* program) {
  return guarded_new([&] {
    require(!program->parts.empty(), "a program has at least one stage");
    return new encodec_state(program, program->open());
  });
}

void encodec_close(encodec_state* state) { delete state; }

int encodec_ended(const encodec_state* state) {
  bool ended = false;
  const int failed = guarded([&] {
    const Taken<encodec_state> taken(&state, 1);
    ended = state->clip.ended;
  });
  return failed ? failed : ended ? 1 : 0;
}

int encodec_ready(const encodec_state* const* states, int64_t batch, const int64_t* lengths, const int64_t* final,
                  int64_t* out_lengths) {
  return guarded([&] {
    const Taken<encodec_state> taken(states, batch);
    for (int64_t b = 0; b < batch; ++b) out_lengths[b] = ready(*states[b], lengths[b], final[b] != 0);
  });
}

int encodec_push(encodec_state* const* states, int64_t batch, const encodec_clips* x, const int64_t* final, int threads,
                 const encodec_clips* y) {
  return guarded([&] {
    const Taken<encodec_state> taken(states, batch);
    std::vector<ClipState*> clips;
    for (int64_t b = 0; b < batch; ++b) {
      ClipState& clip = states[b]->clip;
      require(states[b]->program == states[0]->program, "the clips of one push are on their way through one program");
      require(!clip.ended || (x->lengths[b] == 0 && !final[b]), "this clip has ended: open a new state");
      require(!states[b]->program->whole_clips_only() || clip.ended || (final[b] && clip.length == 0),
              "a network with group norm needs whole clips: one push with `final`");
      require(y->lengths[b] == ready(*states[b], x->lengths[b], final[b] != 0), "an output is as long as encodec_ready says");
      clips.push_back(&clip);
    }
    for (int64_t b = 0; b < batch; ++b) states[b]->broken = true;
    if (batch > 0) states[0]->program->push(clips, *x, final, std::max(1, threads), *y);
    for (int64_t b = 0; b < batch; ++b) states[b]->broken = false;
  });
}

int64_t encodec_save(const encodec_state* state, void* bytes, int64_t size) {
  int64_t written = 0;
  const int failed = guarded([&] {
    const Taken<encodec_state> taken(&state, 1);
    require_whole(*state);
    std::vector<char> saved;
    state->program->save(state->clip, saved);
    written = static_cast<int64_t>(saved.size());
    if (written == size) std::copy(saved.begin(), saved.end(), static_cast<char*>(bytes));
  });
  return failed ? failed : written;
}

encodec_state* encodec_load(const encodec_program* program, const void* bytes, int64_t size) {
  return guarded_new([&] {
    return new encodec_state(program, program->load(static_cast<const char*>(bytes), size));
  });
}

encodec_codebooks* encodec_codebooks_new(const char* tier, const float* entries, int64_t levels, int64_t size, int64_t dim) {
  return guarded_new([&] {
    require(levels > 0 && size > 0 && dim > 0, "codebooks have levels, entries and a dimension");
    return new encodec_codebooks(find_tier(tier), entries, levels, size, dim);
  });
}

void encodec_codebooks_free(encodec_codebooks* codebooks) { delete codebooks; }

int encodec_search_batch(const encodec_codebooks* codebooks, int64_t batch, const float* x, int64_t frames, int64_t clip_stride,
                         int64_t channel_stride, int64_t levels, int threads, int64_t* codes) {
  return guarded([&] {
    require(levels >= 0 && levels <= codebooks->level_count(), "more levels than codebooks");
    require(batch >= 0 && frames >= 0, "a batch and its clips have no negative length");
    const Batch from(batch, x, frames, clip_stride, channel_stride);
    std::vector<int64_t*> rows;
    for (int64_t b = 0; b < batch; ++b) rows.push_back(codes + b * frames);
    const std::vector<int64_t> strides(batch, batch * frames);
    codebooks->search(from.clips(), batch, levels, threads, rows.data(), strides.data());
  });
}

int encodec_lookup(const encodec_codebooks* codebooks, const int64_t* const* codes, const int64_t* code_strides,
                   int64_t batch, int64_t levels, int threads, const encodec_clips* y) {
  bool inside = true;
  const int failed = guarded([&] {
    require(levels >= 0 && levels <= codebooks->level_count(), "more levels than codebooks");
    inside = codebooks->lookup(codes, code_strides, batch, levels, threads, *y);
  });
  return failed ? failed : inside ? 0 : 1;
}

int encodec_normalize(const encodec_clips* x, int64_t batch, int64_t channels, int threads, const encodec_clips* y,
                      float* scales) {
  return guarded([&] {
    require(channels > 0, "a clip has channels");
    for (int64_t b = 0; b < batch; ++b)
      require(x->lengths[b] > 0 && y->lengths[b] == x->lengths[b], "a clip and its result are as long, and not empty");
    normalize(*x, batch, channels, threads, *y, scales);
  });
}

int encodec_overlap_add(const encodec_clips* chunks, int64_t count, int64_t batch, int64_t channels, const float* weight,
                        int64_t stride, int threads, const encodec_clips* y) {
  return guarded([&] {
    require(stride > 0, "chunks follow each other by a positive stride");
    for (int64_t b = 1; b < batch; ++b)
      require(y->lengths[b] == y->lengths[0], "the clips of one overlap-add have one length");
    overlap_add(*chunks, count, batch, channels, weight, stride, threads, *y);
  });
}

int encodec_set_cut(const char* name, int64_t bound) {
  return guarded([&] { set_bound(name, bound); });
}

int encodec_map(const char* tier, int function, const float* x, float* out, int64_t count) {
  return guarded([&] {
    require(function >= 0 && function <= 4, "functions are 0 (exp), 1 (elu), 2 (sigmoid), 3 (tanh) and 4 (gelu)");
    const Ops& ops = find_tier(tier);
    parallel_for(1, 1, [&](int64_t) { ops.map(function, x, out, count); });
  });
}
