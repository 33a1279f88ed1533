// The arithmetic of one instruction-set tier, as a table of functions. Every tier gives the same bits.
//
// Activations are channels-last: [T, C] floats, a row per step of time. Nothing here allocates, throws or keeps state.
#pragma once

#include <cstddef>
#include <cstdint>

namespace encodec {

// What a layer applies to its input. A new one: its struct in simd/elementary.inl, and its case in with_activation there.
enum class Activation { kNone = 0, kElu = 1 };
constexpr int64_t kActivations = 2;

// A run of consecutive terms of a row of the left operand: row m begins at data + m * row_stride.
struct Segment {
  const float* data;
  ptrdiff_t row_stride;
  int64_t length;
};

// out[m, n] = start + sum_k left[m, k] * weight[k, n] (+ addend[m, n])
//
// k ascends through the segments in order, in chains of 256 fused multiply-adds; fewer where 16 segments have fewer. The first
// chain starts from bias[n], each other one from zero, and is then added to the sum so far. Where bias is null, the sum begins with
// out[m, n].
struct Product {
  const Segment* segments;
  int64_t segment_count;
  const float* weight;  // as Ops::pack laid it out
  const float* bias;    // [cols]
  const float* addend;  // or null
  ptrdiff_t addend_stride;
  float* out;
  ptrdiff_t out_stride;
  int64_t rows, cols, depth;  // depth: the sum of the segment lengths
};

struct Codebook {
  const float* entries;  // [N, D]
  const float* packed;   // -2 * entries^T as Ops::pack laid it out
  const float* norms;    // [N] squared lengths
  int64_t size, dim;
  bool tame;               // no entry is NaN, infinite or beyond 2^60
  const int32_t* rounded;  // as Ops::round_entries wrote them, or null
  float longest;           // the greatest length of an entry, or a little more
};

// x[t, c] becomes (x[t, c] - mean) * scale[c] + shift[c].
struct Affine {
  int64_t channels;
  float mean;
  const float *scale, *shift;
};

// The input transform of Winograd's minimal filtering (net/winograd.h). Group g has `step + overlap` frames from first + g * step on. The
// last `overlap` of them are also the next group's first.
struct InputTransform {
  const float* frames;  // [count, width]
  int64_t count, width;
  const float* zeros;  // [width], which stand for frames before the first and beyond the last
  Activation activation;  // of every frame, first
  int64_t first, groups, step, overlap;
  float* terms;  // term i of group g at i * term_stride + g * stride
  ptrdiff_t stride, term_stride;
  float* carried;  // [overlap, width], to work in
};

// Keys of a block: of the language model's keys and values so many steps lie together.
constexpr int64_t kBlockKeys = 16;

// Attention of `rows` steps that follow each other in a segment. The first one's own key has the number `position`; a row attends to its
// own key and to `past_context` before it.
struct Attention {
  const float* queries;  // [rows, heads * dim], scaled
  ptrdiff_t query_stride;
  int64_t rows, position, past_context;
  // Of each head, keys [ring_blocks, dim, 16], key n in lane n % 16 of block n / 16 % ring_blocks. Then as many values [value_stride].
  const float* ring;
  int64_t ring_blocks, head_floats;  // head_floats: from a head to the next
  int64_t heads, dim, value_stride;
  float* scores;  // [4, score_stride], to work in; score_stride: past_context and 35 more
  ptrdiff_t score_stride;
  float* out;  // [rows, heads * dim]
  ptrdiff_t out_stride;
};

// Rows lie `stride` floats apart, a multiple of 16; what lies behind `width` is zero, there and in weight and bias.
struct LayerNorm {
  const float *weight, *bias;
  int64_t width, stride;
  float eps;
};

struct Ops {
  const char* name;
  // Floats that the packed form of [depth, cols] takes.
  int64_t (*packed_size)(int64_t depth, int64_t cols);
  // Element (k, n) is weight[row_offsets[k] + col_offsets[n]], written times scale.
  void (*pack)(const float* weight, const int64_t* row_offsets, const int64_t* col_offsets, float scale, int64_t depth,
               int64_t cols, float* packed);
  void (*product)(const Product& product);
  // out[i] = activation(x[i]); out may be x.
  void (*activate)(Activation activation, const float* x, float* out, int64_t count);
  // out[i] = a[i] + b[i]
  void (*add)(const float* a, const float* b, float* out, int64_t count);
  // Of a group's frames x0, x1, ... the terms. Step 2, overlap 1: `x1, x0 - x1, x1 - x2`.
  // Step 2, overlap 2, and step 3, overlap 1: `x1 + x2, x2 - x1, x0 - x2, x1 - x3`.
  void (*input_transform)(const InputTransform& transform);
  // a becomes a + b; a - b goes to `differences`, which may be b, in rows that lie `stride` apart.
  void (*sums_and_differences)(float* a, const float* b, float* differences, ptrdiff_t stride, int64_t rows, int64_t width);
  // One step: gates [4 * hidden] in torch's order i, f, g, o; c and h [hidden] move on.
  void (*lstm_cell)(const float* gates, float* c, float* h, int64_t hidden);
  // Adds sum(x - pivot) and sum((x - pivot)^2) of each channel over time to sums [2, C]. pivot: [C].
  void (*moments)(const float* x, int64_t rows, int64_t channels, const float* pivot, double* sums);
  // out = activation(map(x))
  void (*affine)(const float* x, float* out, int64_t rows, const Affine& map, Activation activation);
  // out = map(out) + (other_map ? other_map(other) : other)
  void (*affine_sum)(float* out, const Affine& map, const float* other, const Affine* other_map, int64_t rows);
  // Codes [K, codes_stride] of rows [rows, D], which end as the residual. scratch: search_scratch(N, D) floats.
  void (*search)(const Codebook* levels, int64_t level_count, float* residual, int64_t rows, int64_t* codes,
                 ptrdiff_t codes_stride, float* scratch);
  int64_t (*search_scratch)(int64_t size, int64_t dim);
  // The entries as integers, which the search tries first: the words that they take, 0 where it does without; and what writes them.
  int64_t (*rounded_size)(const Codebook& book);
  void (*round_entries)(const Codebook& book, int32_t* words);
  // out = (x - mean) / sqrt(variance + eps) * weight + bias, row by row; out may be x.
  void (*layer_norm)(const LayerNorm& norm, const float* x, float* out, int64_t rows);
  void (*attend)(const Attention& attention);
  // weights[i] = floor(e^(logits[i] - greatest) * 2^22) + 1 of a multiple of 16 logits. False where one is infinite or NaN.
  bool (*softmax_weights)(const float* logits, int64_t count, int32_t* weights);
  // out[i] = function(x[i]); functions: 0 exp, 1 elu, 2 sigmoid, 3 tanh, 4 gelu. out may be x.
  void (*map)(int function, const float* x, float* out, int64_t count);
};

}  // namespace encodec
