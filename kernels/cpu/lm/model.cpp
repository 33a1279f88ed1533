#include "lm/model.h"

#include <algorithm>
#include <cmath>

using namespace encodec;

namespace {

constexpr float kEps = 1e-5f;
// The bias of logits that no code has: they weigh nothing, and stay finite.
constexpr float kNoLogit = -1e30f;

int64_t padded(int64_t width, int64_t multiple = 16) { return (width + multiple - 1) / multiple * multiple; }

std::vector<float> padded_row(const float* values, int64_t width) {
  std::vector<float> row(padded(width), 0.0f);
  std::copy_n(values, width, row.begin());
  return row;
}

// Sine and cosine of a phase of 0 to 2^31, to a float's precision. The operations are single ones in double, so that every machine has
// the same bits. Pi / 2 is cut into three parts: the products of the first two with the number of quarter turns are exact.
void sine_and_cosine(float phase, float& sine, float& cosine) {
  constexpr double kHalfPi[] = {0x1.921fbp+0, 0x1.5110bp-22, 0x1.18469898cc517p-44}, kPerTurn = 0x1.45f306dc9c883p-1;
  const double x = phase;
  const auto turns = static_cast<int64_t>(x * kPerTurn + 0.5);
  const auto n = static_cast<double>(turns);
  const double r = ((x - n * kHalfPi[0]) - n * kHalfPi[1]) - n * kHalfPi[2], s = r * r;
  double odd = -1.0 / 1307674368000.0, even = 1.0 / 20922789888000.0;
  for (const double term : {1.0 / 6227020800.0, -1.0 / 39916800.0, 1.0 / 362880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0, 1.0})
    odd = odd * s + term;
  for (const double term :
       {-1.0 / 87178291200.0, 1.0 / 479001600.0, -1.0 / 3628800.0, 1.0 / 40320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5, 1.0})
    even = even * s + term;
  odd *= r;
  sine = static_cast<float>(turns & 1 ? even : odd);
  cosine = static_cast<float>(turns & 1 ? odd : even);
  if (turns & 2) sine = -sine;
  if ((turns + 1) & 2) cosine = -cosine;
}

// The weights of queries, keys and values, [3 * dim, dim] or [3 * dim, 1], those of queries times 1 / sqrt(dim of a head).
std::vector<float> with_scaled_queries(const float* weights, int64_t count, const encodec_lm_sizes& sizes) {
  std::vector<float> scaled(weights, weights + 3 * count);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sizes.dim / sizes.heads)));
  for (int64_t i = 0; i < count; ++i) scaled[i] *= scale;
  return scaled;
}

}  // namespace

Linear::Linear(const Ops& ops, const float* weight, const float* bias, int64_t in, int64_t out, int64_t multiple, float filling)
    : depth_(in), bias_(padded(out, multiple), filling) {
  std::copy_n(bias, out, bias_.begin());
  std::vector<float> rows(stride() * in, 0.0f);
  std::copy_n(weight, out * in, rows.begin());
  std::vector<int64_t> row_offsets(in), col_offsets(stride());
  for (int64_t k = 0; k < in; ++k) row_offsets[k] = k;
  for (int64_t n = 0; n < stride(); ++n) col_offsets[n] = n * in;
  packed_ = Floats(ops.packed_size(in, stride()));
  ops.pack(rows.data(), row_offsets.data(), col_offsets.data(), 1.0f, in, stride(), packed_.data());
}

void Linear::run(const Ops& ops, const float* x, ptrdiff_t x_stride, int64_t rows, float* out, const float* addend) const {
  const Segment segment = {x, x_stride, depth_};
  ops.product({&segment, 1, packed_.data(), bias_.data(), addend, stride(), out, stride(), rows, stride(), depth_});
}

encodec_lm::encodec_lm(const Ops& ops, const encodec_lm_sizes& sizes, const float* const* weights, const float* divisors)
    : ops_(ops), sizes_(sizes), stride_(padded(sizes.dim)), divisors_(divisors, divisors + sizes.dim / 2) {
  const int64_t dim = sizes.dim, hidden = sizes.hidden;
  for (int64_t level = 0; level < sizes.codebooks; ++level, ++weights) {
    embeddings_.emplace_back((sizes.codebook_size + 1) * stride_, 0.0f);
    for (int64_t n = 0; n <= sizes.codebook_size; ++n)
      std::copy_n(*weights + n * dim, dim, embeddings_.back().begin() + n * stride_);
  }
  norm_in_ = norm(weights[0], weights[1]);
  weights += 2;
  for (int64_t number = 0; number < sizes.layers; ++number, weights += 12) {
    const std::vector<float> project = with_scaled_queries(weights[0], dim * dim, sizes);
    const std::vector<float> bias = with_scaled_queries(weights[1], dim, sizes);
    layers_.push_back({Linear(ops, project.data(), bias.data(), dim, 3 * dim), Linear(ops, weights[2], weights[3], dim, dim),
                       Linear(ops, weights[4], weights[5], dim, hidden), Linear(ops, weights[6], weights[7], hidden, dim),
                       norm(weights[8], weights[9]), norm(weights[10], weights[11]),
                       {bias.begin() + dim, bias.begin() + 2 * dim}, {bias.begin() + 2 * dim, bias.end()}});
  }
  // whole panels of every tier
  for (int64_t level = 0; level < sizes.codebooks; ++level, weights += 2)
    heads_.emplace_back(ops, weights[0], weights[1], dim, sizes.codebook_size, 64, kNoLogit);
}

encodec_lm::Norm encodec_lm::norm(const float* weight, const float* bias) const {
  return {padded_row(weight, sizes_.dim), padded_row(bias, sizes_.dim)};
}

LayerNorm encodec_lm::record(const Norm& norm) const { return {norm.weight.data(), norm.bias.data(), sizes_.dim, stride_, kEps}; }

Keys encodec_lm::first_keys(int64_t rows, int64_t steps) const {
  Keys keys(key_shape(), rows, steps);
  keys.reserve(0, 1);
  for (int64_t layer = 0; layer < sizes_.layers; ++layer)
    keys.put(layer, 0, layers_[layer].zero_key.data(), layers_[layer].zero_value.data());
  return keys;
}

void encodec_lm::embed(const int64_t* previous, int64_t levels, int64_t position, float* row) const {
  std::copy_n(embeddings_[0].data() + (previous[0] + 1) * stride_, stride_, row);
  for (int64_t level = 1; level < levels; ++level)
    ops_.add(row, embeddings_[level].data() + (previous[level] + 1) * stride_, row, stride_);
  ops_.layer_norm(record(norm_in_), row, row, 1);
  const int64_t half = sizes_.dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    float sine, cosine;
    sine_and_cosine(static_cast<float>(position) / divisors_[i], sine, cosine);
    row[i] += cosine;
    row[half + i] += sine;
  }
}

void encodec_lm::run(const std::vector<Steps>& steps, LanguageWorkspace& workspace) const {
  int64_t rows = 0;
  for (const Steps& own : steps) rows += own.count, own.keys->reserve(own.first + 1, own.count);
  float* x = workspace.states.reserve(rows * stride_);
  float *attended = workspace.attended.reserve(rows * stride_), *sums = workspace.sums.reserve(rows * stride_);
  for (int64_t number = 0; number < sizes_.layers; ++number) {
    const Layer& layer = layers_[number];
    layer.project.run(ops_, x, stride_, rows, workspace.projected.reserve(rows * layer.project.stride()));
    attend(layer, number, steps, workspace);
    layer.join.run(ops_, attended, stride_, rows, sums, x);
    ops_.layer_norm(record(layer.attended), sums, x, rows);
    float* hidden = workspace.hidden.reserve(rows * layer.widen.stride());
    layer.widen.run(ops_, x, stride_, rows, hidden);
    ops_.map(4, hidden, hidden, rows * layer.widen.stride());
    layer.narrow.run(ops_, hidden, layer.widen.stride(), rows, sums, x);
    ops_.layer_norm(record(layer.fed), sums, x, rows);
  }
}

void encodec_lm::attend(const Layer& layer, int64_t number, const std::vector<Steps>& steps, LanguageWorkspace& workspace) const {
  const KeyShape shape = key_shape();
  const int64_t stride = layer.project.stride(), dim = sizes_.dim;
  const float* row = workspace.projected.reserve(0);
  float* out = workspace.attended.reserve(0);
  Attention attention = {};
  attention.query_stride = stride;
  attention.past_context = sizes_.past_context;
  attention.heads = shape.heads;
  attention.dim = shape.dim;
  attention.value_stride = shape.value_stride();
  attention.score_stride = padded(sizes_.past_context + 35);
  attention.scores = workspace.scores.reserve(4 * attention.score_stride);
  attention.out_stride = stride_;
  for (const Steps& own : steps) {
    for (int64_t i = 0; i < own.count; ++i)
      own.keys->put(number, own.first + 1 + i, row + i * stride + dim, row + i * stride + 2 * dim);
    own.keys->show(number, attention);
    attention.queries = row;
    attention.out = out;
    attention.rows = own.count;
    attention.position = own.first + 1;
    ops_.attend(attention);
    row += own.count * stride;
    out += own.count * stride_;
  }
}

void encodec_lm::logits(int64_t level, const float* states, int64_t rows, float* out) const {
  heads_[level].run(ops_, states, stride_, rows, out);
}
