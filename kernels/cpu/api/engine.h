// The C interface of the CPU engine. library.py binds what the package calls, field for field; tests call the rest.
//
// A program is a run of stages with its weights packed for one instruction-set tier; it never changes once built and serves any
// number of threads. A state is one clip on its way through a program; one call at a time may use it, and a second one fails. After a
// push that failed half way, by want of memory, a state can only be closed.
// Functions that can fail return null or -1, and encodec_error() then says why (per thread).
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ENCODEC_ABI 7

typedef struct encodec_program encodec_program;
typedef struct encodec_state encodec_state;
typedef struct encodec_codebooks encodec_codebooks;
typedef struct encodec_lm encodec_lm;
typedef struct encodec_segment encodec_segment;

// A convolution, weight [out, in, kernel], or a transposed one, weight [in, out, kernel]. Weights are copied.
typedef struct encodec_conv {
  int64_t in_channels, out_channels, kernel, stride, dilation;
  int64_t pad_left, pad_right;  // of a transposed convolution: the steps trimmed from its ends
  int64_t pad_mode;             // 0 reflect, 1 constant (zero), 2 replicate
  int64_t activation;           // of the input: 0 none, 1 ELU
  const float *weight, *bias;   // bias [out] or null
  const float *norm_weight, *norm_bias;  // [out] of the group norm over channels and time, or null
  double norm_eps;
} encodec_conv;

// Channels-first clips: clip b has lengths[b] steps, channel c of it begins at data[b] + c * strides[b].
typedef struct encodec_clips {
  float* const* data;
  const int64_t *lengths, *strides;
} encodec_clips;

// A language model's sizes; dim is even and a multiple of heads.
typedef struct encodec_lm_sizes {
  int64_t codebooks, codebook_size, dim, heads, layers, hidden, past_context;
} encodec_lm_sizes;

#pragma GCC visibility push(default)

int64_t encodec_abi(void);
const char* encodec_error(void);

// Name of the n-th tier that this machine can run, best first, then null.
const char* encodec_tier(int64_t n);

// tier: one of the above, or null for the best.
encodec_program* encodec_program_new(const char* tier);
void encodec_program_free(encodec_program* program);
int encodec_add_conv(encodec_program* program, const encodec_conv* conv);
// shortcut(x) + conv2(conv1(x)); shortcut null: the identity.
int encodec_add_residual(encodec_program* program, const encodec_conv* conv1, const encodec_conv* conv2,
                         const encodec_conv* shortcut);
int encodec_add_upsample(encodec_program* program, const encodec_conv* conv);
// x + lstm(x); weights: w_ih, w_hh [4 * channels, channels], b_ih, b_hh [4 * channels] of each layer in turn.
int encodec_add_lstm(encodec_program* program, int64_t channels, int64_t layers, const float* const* weights);

// Steps that a whole clip of so many steps comes out with.
int64_t encodec_output_length(const encodec_program* program, int64_t steps);
// Whole clips of one length: channel c of clip b begins at x + b * x_clip_stride + c * x_channel_stride; y likewise, of y_steps steps.
int encodec_run(const encodec_program* program, int64_t batch, const float* x, int64_t x_steps, int64_t x_clip_stride,
                int64_t x_channel_stride, int threads, float* y, int64_t y_steps, int64_t y_clip_stride, int64_t y_channel_stride);

// A clip at its first step.
encodec_state* encodec_open(const encodec_program* program);
void encodec_close(encodec_state* state);
// Whether the clip has ended: 0 or 1.
int encodec_ended(const encodec_state* state);
// Steps that a push of lengths [batch] would give out. final [batch]: whether the clip ends there.
int encodec_ready(const encodec_state* const* states, int64_t batch, const int64_t* lengths, const int64_t* final,
                  int64_t* out_lengths);
// The outputs that the next steps of every clip complete; a clip with `final` ends here. Output lengths as encodec_ready says.
// The states are those of one program, each clip's own. A clip's bits depend on its own samples alone: not on the batch, the
// pieces, `threads` or the tier.
int encodec_push(encodec_state* const* states, int64_t batch, const encodec_clips* x, const int64_t* final, int threads,
                 const encodec_clips* y);
// Bytes that hold the state, for encodec_load of the same program anywhere; written to `bytes` if `size` is that many.
int64_t encodec_save(const encodec_state* state, void* bytes, int64_t size);
// Null where the bytes are not of a state that a clip of such a program can come to. Only the floats in them are taken as they are.
encodec_state* encodec_load(const encodec_program* program, const void* bytes, int64_t size);

// entries [levels, size, dim], copied.
encodec_codebooks* encodec_codebooks_new(const char* tier, const float* entries, int64_t levels, int64_t size, int64_t dim);
void encodec_codebooks_free(encodec_codebooks* codebooks);
// Residual search over the first `levels` codebooks, of clips of one length in one tensor: as of encodec_run. Ties go to the lowest
// entry. codes: [levels, batch, frames], contiguous.
int encodec_search_batch(const encodec_codebooks* codebooks, int64_t batch, const float* x, int64_t frames, int64_t clip_stride,
                         int64_t channel_stride, int64_t levels, int threads, int64_t* codes);
// The sum of the named entries, first level first. Returns 1, with nothing else done, if a code lies outside its codebook.
int encodec_lookup(const encodec_codebooks* codebooks, const int64_t* const* codes, const int64_t* code_strides,
                   int64_t batch, int64_t levels, int threads, const encodec_clips* y);

// y = x / scale and the scale [batch] of each clip: sqrt(mean(mono^2)) + 1e-8, mono the mean of the channels.
int encodec_normalize(const encodec_clips* x, int64_t batch, int64_t channels, int threads, const encodec_clips* y,
                      float* scales);
// Chunk i of clip b is clip i * batch + b of `chunks`. It begins at step i * stride of y's clip b and is cut at its end.
// Each chunk is weighed by `weight`, which is as long as the longest. The sum is divided by that of the weights.
int encodec_overlap_add(const encodec_clips* chunks, int64_t count, int64_t batch, int64_t channels, const float* weight,
                        int64_t stride, int threads, const encodec_clips* y);

// The language model over codes. weights, as torch has them: the embeddings of each codebook; weight and bias of the first norm; of each
// layer, weight and bias of in_proj, out_proj, linear1, linear2, norm1 and norm2; weight and bias of the linear of each codebook.
// divisors [dim / 2]: what a step's number is divided by for each sinusoid, 1 or more. All are copied.
encodec_lm* encodec_lm_new(const char* tier, const encodec_lm_sizes* sizes, const float* const* weights, const float* divisors);
void encodec_lm_free(encodec_lm* model);
// For tests: the logits [frames, levels, codebook_size] by which a segment's codes are coded, level k at codes + k * stride.
int encodec_lm_logits(const encodec_lm* model, int64_t levels, const int64_t* codes, int64_t stride, int64_t frames, float* out);
// A segment before its first frame, of so many levels: one to encode, and one to decode, whose payload is copied. It will have at most
// `most_frames`, up to 2^31 - 1: few of them take less memory.
encodec_segment* encodec_segment_encode(const encodec_lm* model, int64_t levels, int64_t most_frames);
encodec_segment* encodec_segment_decode(const encodec_lm* model, int64_t levels, int64_t most_frames, const uint8_t* payload,
                                        int64_t size);
// The levels of a segment that is decoded, or of one that is encoded; 0 of one of the other kind.
int64_t encodec_segment_levels(const encodec_segment* segment, int decodes);
void encodec_segment_close(encodec_segment* segment);
// The next frames[b] frames of every segment: code f of level k at codes[b] + k * strides[b] + f. The segments are those of one model. Bytes
// and codes depend on the segment alone: not on the batch, the pieces, `threads` or the tier. After a failure, a segment can only be closed.
int encodec_encode(encodec_segment* const* segments, int64_t batch, const int64_t* const* codes, const int64_t* strides,
                   const int64_t* frames, int threads);
int encodec_decode(encodec_segment* const* segments, int64_t batch, int64_t* const* codes, const int64_t* strides,
                   const int64_t* frames, int threads);
// How many bytes of an encoded segment no later frame changes. Written to `bytes`, and taken, if `size` is that many. With `final` all of
// them, and the segment ends.
int64_t encodec_segment_bytes(encodec_segment* segment, int final, uint8_t* bytes, int64_t size);
// Whether a decoded segment has read all of its payload: 0 or 1.
int encodec_segment_used_up(const encodec_segment* segment);
// As encodec_save and encodec_load, of a segment.
int64_t encodec_segment_save(const encodec_segment* segment, void* bytes, int64_t size);
encodec_segment* encodec_segment_load(const encodec_lm* model, const void* bytes, int64_t size);

// Changes a bound of net/cuts.h for the whole process, while no other call runs; 0 restores it. No bit depends on it.
int encodec_set_cut(const char* name, int64_t bound);
// For tests: function 0 exp (of x <= 0), 1 elu, 2 sigmoid, 3 tanh, 4 gelu over `count` floats.
int encodec_map(const char* tier, int function, const float* x, float* out, int64_t count);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
