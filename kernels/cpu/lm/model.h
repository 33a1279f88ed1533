// The Transformer of the language model, its weights packed for one tier.
#pragma once

#include <vector>

#include "api/engine.h"
#include "lm/keys.h"
#include "runtime/memory.h"
#include "simd/ops.h"

namespace encodec {

// Steps that follow each other in one segment, and where that keeps its keys. Step s has the key s + 1; key 0 is a vector of zeros.
struct Steps {
  Keys* keys;
  int64_t first, count;
};

// What one thread works in.
struct LanguageWorkspace {
  Buffer states, projected, attended, sums, hidden, scores, logits;
};

// rows * weight^T + bias. Rows on both sides lie a multiple of 16 floats apart, with zeros behind their end.
class Linear {
 public:
  // weight [out, in], bias [out]. Columns are padded to a multiple of `multiple`, with `filling` for their bias.
  Linear(const Ops& ops, const float* weight, const float* bias, int64_t in, int64_t out, int64_t multiple = 16, float filling = 0);
  void run(const Ops& ops, const float* x, ptrdiff_t x_stride, int64_t rows, float* out, const float* addend = nullptr) const;
  int64_t stride() const { return static_cast<int64_t>(bias_.size()); }

 private:
  int64_t depth_;
  std::vector<float> bias_;
  Floats packed_;
};

}  // namespace encodec

struct encodec_lm {
  encodec_lm(const encodec::Ops& ops, const encodec_lm_sizes& sizes, const float* const* weights, const float* divisors);

  // Writes the first layer's input at the step `position` to a row of `states`. previous [levels]: the codes before it, -1 for none.
  void embed(const int64_t* previous, int64_t levels, int64_t position, float* row) const;
  // Runs the rows in workspace.states, those of `steps` one after another, through all layers. A row's bits depend on its segment alone.
  void run(const std::vector<encodec::Steps>& steps, encodec::LanguageWorkspace& workspace) const;
  // Logits [rows, logit_stride] of a level; those behind the codebook's size are -1e30.
  void logits(int64_t level, const float* states, int64_t rows, float* out) const;
  // A segment's keys before its first step, with room for `rows` steps at once, and for `steps` in all.
  encodec::Keys first_keys(int64_t rows, int64_t steps) const;

  const encodec_lm_sizes& sizes() const { return sizes_; }
  const encodec::Ops& ops() const { return ops_; }
  int64_t stride() const { return stride_; }
  int64_t logit_stride() const { return heads_[0].stride(); }
  encodec::KeyShape key_shape() const { return {sizes_.layers, sizes_.heads, sizes_.dim / sizes_.heads, sizes_.past_context}; }

 private:
  struct Norm {
    std::vector<float> weight, bias;
  };
  struct Layer {
    encodec::Linear project, join, widen, narrow;
    Norm attended, fed;
    std::vector<float> zero_key, zero_value;  // of a vector of zeros: the biases
  };
  Norm norm(const float* weight, const float* bias) const;
  encodec::LayerNorm record(const Norm& norm) const;
  void attend(const Layer& layer, int64_t number, const std::vector<encodec::Steps>& steps, encodec::LanguageWorkspace& workspace) const;

  const encodec::Ops& ops_;
  const encodec_lm_sizes sizes_;
  const int64_t stride_;
  std::vector<std::vector<float>> embeddings_;  // of each level, [codebook_size + 1, stride]
  std::vector<float> divisors_;
  Norm norm_in_;
  std::vector<Layer> layers_;
  std::vector<encodec::Linear> heads_;
};
