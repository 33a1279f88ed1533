// The few entries of a codebook that can be nearest to a row, by integer products: twice the terms of float32's an instruction.
// Included inside a tier's own namespace after simd/product.inl.
//
// A row and all entries of a codebook are scaled, each by one power of two: x and e have lengths of at most kLength. They are rounded to
// int16, X and E:
//
//     |x - X|, |e - E|  <=  sqrt(D)/2
//     |x.e - X.E|       <=  |x - X| |e| + |X| |e - E|  <=  sqrt(D)/2 (|x| + |e| + sqrt(D)/2)     (1)
//     |X.E|             <=  |X| |E|, which stays within int32
//
// The score |e|^2 - 2 x.e of simd/search.inl is a chain of float32. Without the scales it errs by at most
//
//     D 2^-24 (|e|^2 + 2 |x| |e|)     (2)
//
// The entry with simd/search.inl's lowest score has a score by X.E that is near the lowest one: within twice the sum of (1) and (2). Such
// entries are listed. For |e| stands the longest entry's.

constexpr float kLength = 32000.0f;
// Lengths whose squares, and whose scales, are far inside float32's range.
constexpr float kShortest = 0x1p-30f, kLongest = 0x1p40f;
constexpr int kMostListed = 16;

ENCODEC_INLINE int64_t padded_size(int64_t size) { return (size + kPanel - 1) / kPanel * kPanel; }
ENCODEC_INLINE int64_t pairs_of(int64_t dim) { return (dim + 1) / 2; }
ENCODEC_INLINE bool in_range(float length) { return length > kShortest && length < kLongest; }  // false for NaN

ENCODEC_INLINE uint32_t word_of(float x) {
  uint32_t word;
  __builtin_memcpy(&word, &x, sizeof word);
  return word;
}

// The greatest power of two that takes the length to kLength at most.
float scale_of(float length) {
  const uint32_t word = word_of(kLength / length) & 0x7f800000u;
  float scale;
  __builtin_memcpy(&scale, &word, sizeof scale);
  return scale;
}

// x * scale, which is at most kLength, to the nearest integer, in two's complement: kRound leaves it in the low mantissa bits.
ENCODEC_INLINE uint32_t rounded(float x, float scale) { return word_of(x * scale + kRound) - word_of(kRound); }

// Word k holds elements k and k + pairs of x, rounded; beyond the last they are zeros.
ENCODEC_INLINE void round_row(const float* x, int64_t dim, float scale, int32_t* words, int64_t stride) {
  const int64_t pairs = pairs_of(dim), whole = dim - pairs;
  for (int64_t k = 0; k < whole; ++k)
    words[k * stride] = static_cast<int32_t>((rounded(x[k], scale) & 0xffffu) | rounded(x[k + pairs], scale) << 16);
  if (whole < pairs) words[whole * stride] = static_cast<int32_t>(rounded(x[whole], scale) & 0xffffu);
}

int64_t rounded_size(const Codebook& book) {
  const bool one_chain = book.dim <= kChain;  // or score_of would have to sum as `product` does
  return kPairs && one_chain && book.tame && in_range(book.longest) ? padded_size(book.size) * (pairs_of(book.dim) + 1) : 0;
}

// Panels of words, [pairs][kPanel] each, then every entry's squared length as a float; entries that fill the last panel are infinitely far.
void round_entries(const Codebook& book, int32_t* words) {
  const int64_t padded = padded_size(book.size), pairs = pairs_of(book.dim);
  const float scale = scale_of(book.longest), infinity = __builtin_inff();
  __builtin_memset(words, 0, padded * pairs * sizeof *words);
  for (int64_t n = 0; n < padded; ++n) {
    const int64_t panel = n / kPanel * kPanel;
    if (n < book.size) round_row(book.entries + n * book.dim, book.dim, scale, words + panel * pairs + n - panel, kPanel);
    __builtin_memcpy(words + padded * pairs + n, n < book.size ? book.norms + n : &infinity, sizeof *words);
  }
}

// What the scores of a group of rows are computed from and kept in.
struct Scoring {
  const int32_t* rows;  // [kRows, pairs]
  int64_t pairs;
  const float* factors;  // [kRows]: what takes X.E to -2 x.e
  float* scores;         // [kRows, score_stride]
  int64_t score_stride;
  float* lowest;  // [kRows, kWidth]: the lowest score of each lane so far
};

// Scores of kRows rows and one panel of entries.
template <int kRows>
void score_panel(const Scoring& s, const int32_t* words, const float* norms, int64_t first) {
  Mask sums[kRows][kMaxVecs] = {};
  for (int64_t k = 0; k < s.pairs; ++k, words += kPanel) {
    Mask column[kMaxVecs];
#pragma GCC unroll 32
    for (int v = 0; v < kMaxVecs; ++v) column[v] = load_words(words + v * kWidth);
#pragma GCC unroll 32
    for (int m = 0; m < kRows; ++m) {
      const Mask x = Mask{} + s.rows[m * s.pairs + k];
#pragma GCC unroll 32
      for (int v = 0; v < kMaxVecs; ++v) sums[m][v] = add_pairs(x, column[v], sums[m][v]);
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m) {
    Vec low = load(s.lowest + m * kWidth);
#pragma GCC unroll 32
    for (int v = 0; v < kMaxVecs; ++v) {
      const Vec score = load(norms + v * kWidth) + __builtin_convertvector(sums[m][v], Vec) * s.factors[m];
      store(s.scores + m * s.score_stride + first + v * kWidth, score);
      low = score < low ? score : low;
    }
    store(s.lowest + m * kWidth, low);
  }
}

// As score_panel of up to kRows rows.
template <int kRows = kTileRows[kMaxVecs]>
void score_rows(int64_t rows, const Scoring& s, const int32_t* words, const float* norms, int64_t first) {
  if (rows == kRows) return score_panel<kRows>(s, words, norms, first);
  if constexpr (kRows > 1) score_rows<kRows - 1>(rows, s, words, norms, first);
}

// The length of x or a little more.
float length_of(const float* x, int64_t dim) {
  Vec squares = {};
  int64_t d = 0;
  for (; d + kWidth <= dim; d += kWidth) squares = squares + load(x + d) * load(x + d);
  if (d < dim) squares = squares + load_part(x + d, dim - d) * load_part(x + d, dim - d);
  float sum = 0.0f;
  for (int lane = 0; lane < kWidth; ++lane) sum += squares[lane];
  return __builtin_sqrtf(sum) * (1.0f + 0x1p-16f);
}

// The score of simd/search.inl.
float score_of(const Codebook& book, const float* x, int64_t n) {
  float score = book.norms[n];
  for (int64_t d = 0; d < book.dim; ++d) score = fma_scalar(x[d], -2.0f * book.entries[n * book.dim + d], score);
  return score;
}

// The entry with simd/search.inl's lowest score, the first of equals, among those whose `scores` are at most the limit; -1 if they are many.
int64_t nearest_listed(const Codebook& book, const float* x, const float* scores, float limit) {
  Mask counts = {}, where = {};
  for (int64_t v = 0; v < padded_size(book.size) / kWidth; ++v) {
    const Mask listed = load(scores + v * kWidth) <= splat(limit);
    counts -= listed;
    where = listed ? Mask{} + static_cast<int32_t>(v) : where;
  }
  int64_t listed = 0, nearest = -1;
  for (int lane = 0; lane < kWidth; ++lane) {
    listed += counts[lane];
    if (counts[lane]) nearest = static_cast<int64_t>(where[lane]) * kWidth + lane;
  }
  if (listed == 1) return nearest;
  if (listed > kMostListed) return -1;
  nearest = -1;
  float lowest = 0.0f;
  for (int64_t n = 0; n < book.size; ++n) {
    if (scores[n] > limit) continue;
    const float score = score_of(book, x, n);
    if (nearest < 0 || score < lowest) nearest = n, lowest = score;
  }
  return nearest;
}

// Floats that search_listed works in.
int64_t listed_scratch(int64_t rows, int64_t size, int64_t dim) { return rows * (padded_size(size) + kWidth + 2 + pairs_of(dim)); }

// The code of each row, or -1 where that takes a search of all entries: where the list is long, and where the row's length is out of
// range, in whose place zeros are scored.
void search_listed(const Codebook& book, const float* x, int64_t rows, int64_t* codes, float* scratch) {
  const int64_t dim = book.dim, pairs = pairs_of(dim), padded = padded_size(book.size);
  float *const scores = scratch, *const lowest = scores + rows * padded, *const factors = lowest + rows * kWidth;
  float* const lengths = factors + rows;
  auto* const words = reinterpret_cast<int32_t*>(lengths + rows);
  const float entry_scale = scale_of(book.longest);
  __builtin_memset(words, 0, rows * pairs * sizeof *words);
  for (int64_t m = 0; m < rows; ++m) {
    lengths[m] = length_of(x + m * dim, dim);
    factors[m] = 0.0f;
    for (int lane = 0; lane < kWidth; ++lane) lowest[m * kWidth + lane] = __builtin_inff();
    if (!in_range(lengths[m])) continue;
    const float scale = scale_of(lengths[m]);
    round_row(x + m * dim, dim, scale, words + m * pairs, 1);
    factors[m] = -2.0f / (scale * entry_scale);
  }

  const auto* const norms = reinterpret_cast<const float*>(book.rounded + padded * pairs);
  constexpr int64_t kRows = kTileRows[kMaxVecs];
  for (int64_t first = 0; first < padded; first += kPanel)
    for (int64_t m = 0; m < rows; m += kRows) {
      const Scoring scoring = {words + m * pairs, pairs, factors + m, scores + m * padded, padded, lowest + m * kWidth};
      score_rows(rows - m < kRows ? rows - m : kRows, scoring, book.rounded + first * pairs, norms + first, first);
    }

  const double longest = book.longest, half_root = 0.5 * __builtin_sqrt(static_cast<double>(dim));
  for (int64_t m = 0; m < rows; ++m) {
    codes[m] = -1;
    if (!in_range(lengths[m])) continue;
    float low = lowest[m * kWidth];
    for (int lane = 1; lane < kWidth; ++lane) low = lowest[m * kWidth + lane] < low ? lowest[m * kWidth + lane] : low;
    const double length = lengths[m], scale = scale_of(lengths[m]);
    // (1) and (2), with four more roundings: of X.E as a float, of its sum with |e|^2, and their growth along the chain
    const double rounding = -factors[m] * half_root * (length * scale + longest * entry_scale + half_root);
    const double chain = static_cast<double>(dim + 4) * 0x1.01p-24 * longest * (longest + 2 * length);
    const double limit = low + 2 * (rounding + chain);
    codes[m] = nearest_listed(book, x + m * dim, scores + m * padded, static_cast<float>(limit + __builtin_fabs(limit) * 0x1p-22));
  }
}
