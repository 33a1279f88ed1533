// The codebooks of all levels, the search for the nearest entries and the sum of the entries that codes name.
#pragma once

#include <vector>

#include "api/engine.h"
#include "runtime/memory.h"
#include "simd/ops.h"

struct encodec_codebooks {
  // entries: [levels, size, dim].
  encodec_codebooks(const encodec::Ops& tier, const float* entries, int64_t levels, int64_t size, int64_t dim);

  int64_t level_count() const { return static_cast<int64_t>(levels_.size()); }
  // Codes of embeddings x, level k of clip b at codes[b] + k * code_strides[b]; on equal distances the lowest index.
  void search(const encodec_clips& x, int64_t batch, int64_t levels, int threads, int64_t* const* codes,
              const int64_t* code_strides) const;
  // The sums of the entries that codes name, level after level. False, and nothing is written, where a code is outside its codebook.
  bool lookup(const int64_t* const* codes, const int64_t* code_strides, int64_t batch, int64_t levels, int threads,
              const encodec_clips& y) const;

 private:
  void add_level(const float* entries, float* norms);

  const encodec::Ops& ops_;
  const int64_t size_, dim_;
  std::vector<float> entries_, norms_;
  std::vector<encodec::Floats> packed_;
  std::vector<std::vector<int32_t>> rounded_;
  std::vector<encodec::Codebook> levels_;
};
