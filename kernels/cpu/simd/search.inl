// Residual vector quantization. Included inside a tier's own namespace after simd/product.inl.

// Rows that are searched together: their scores, 400 KB with 1,024 entries, stay in the second-level cache while the codebook goes by.
constexpr int64_t kSearchRows = 96;
constexpr float kTame = 0x1p60f;

int64_t search_scratch(int64_t size, int64_t dim) {
  const int64_t listed = listed_scratch(kSearchRows, size, dim), all = kSearchRows * (kPanel + kWidth);
  return kPairs && listed > all ? listed : all;
}

// The entry that transformers picks: the first NaN distance, or else the first greatest -(|x|^2 - 2 x.e + |e|^2).
int64_t search_wild(const Codebook& book, const float* x) {
  float squares = 0.0f;
  for (int64_t d = 0; d < book.dim; ++d) squares = fma_scalar(x[d], x[d], squares);
  int64_t best = 0;
  float best_score = 0.0f;
  for (int64_t n = 0; n < book.size; ++n) {
    float dot = 0.0f;
    for (int64_t d = 0; d < book.dim; ++d) dot = fma_scalar(x[d], book.entries[n * book.dim + d], dot);
    const float score = -((squares - 2.0f * dot) + book.norms[n]);
    if (score != score) return n;
    if (n == 0 || score > best_score) best = n, best_score = score;
  }
  return best;
}

bool is_tame(const float* x, int64_t count) {
  bool tame = true;
  for (int64_t i = 0; i < count; ++i) tame &= x[i] < kTame && x[i] > -kTame;  // false for NaN
  return tame;
}

// Keeps, in each lane, the lowest score and the vector of columns it came from; a tie keeps the earlier one.
ENCODEC_INLINE void keep_lowest(const float* scores, int64_t vecs, int64_t first, float* best, int32_t* where) {
  Vec low = load(best);
  Mask at;
  __builtin_memcpy(&at, where, sizeof at);
  for (int64_t v = 0; v < vecs; ++v) {
    const Vec score = load(scores + v * kWidth);
    const Mask less = score < low;
    low = less ? score : low;
    at = less ? (Mask{} + static_cast<int32_t>(first / kWidth + v)) : at;
  }
  store(best, low);
  __builtin_memcpy(where, &at, sizeof at);
}

// The nearest entry of each row, by its score |e|^2 - 2 x.e: the squared distance less |x|^2, as a chain over d that starts from |e|^2.
void search_all(const Codebook& book, const float* x, int64_t rows, int64_t* codes, float* scratch) {
  float *scores = scratch, *best = scores + kSearchRows * kPanel;
  int32_t where[kSearchRows * kWidth];
  const float infinity = __builtin_inff();
  for (int64_t i = 0; i < rows * kWidth; ++i) best[i] = infinity, where[i] = 0;
  const Segment left = {x, book.dim, book.dim};
  for (int64_t first = 0; first < book.size; first += kPanel) {
    const int64_t vecs = panel_vecs(book.size - first), width = vecs * kWidth;
    const int64_t valid = book.size - first < width ? book.size - first : width;
    for (int64_t m = 0; m < rows && valid < width; ++m)
      for (int64_t n = valid; n < width; ++n) scores[m * kPanel + n] = infinity;
    product({&left, 1, book.packed + first * book.dim, book.norms + first, nullptr, 0, scores, kPanel, rows, valid,
             book.dim});
    for (int64_t m = 0; m < rows; ++m)
      keep_lowest(scores + m * kPanel, vecs, first, best + m * kWidth, where + m * kWidth);
  }
  for (int64_t m = 0; m < rows; ++m) {
    int64_t code = 0;
    if (book.tame && is_tame(x + m * book.dim, book.dim)) {
      float low = infinity;
      for (int lane = 0; lane < kWidth; ++lane) {
        const int64_t n = static_cast<int64_t>(where[m * kWidth + lane]) * kWidth + lane;
        const float score = best[m * kWidth + lane];
        if (score < low || (score == low && n < code)) low = score, code = n;
      }
    } else {
      code = search_wild(book, x + m * book.dim);
    }
    codes[m] = code;
  }
}

void search_level(const Codebook& book, float* residual, int64_t rows, int64_t* codes, float* scratch) {
  if (book.rounded)
    search_listed(book, residual, rows, codes, scratch);
  else
    for (int64_t m = 0; m < rows; ++m) codes[m] = -1;
  for (int64_t first = 0, end; first < rows; first = end) {
    for (end = first; end < rows && codes[end] < 0;) ++end;
    if (first < end) search_all(book, residual + first * book.dim, end - first, codes + first, scratch);
    while (end < rows && codes[end] >= 0) ++end;
  }
  for (int64_t m = 0; m < rows; ++m) {
    float* const x = residual + m * book.dim;
    const float* const entry = book.entries + codes[m] * book.dim;
    for (int64_t d = 0; d < book.dim; ++d) x[d] -= entry[d];
  }
}

void search(const Codebook* levels, int64_t level_count, float* residual, int64_t rows, int64_t* codes,
            ptrdiff_t codes_stride, float* scratch) {
  for (int64_t first = 0; first < rows; first += kSearchRows) {
    const int64_t count = rows - first < kSearchRows ? rows - first : kSearchRows;
    for (int64_t k = 0; k < level_count; ++k)
      search_level(levels[k], residual + first * levels[k].dim, count, codes + k * codes_stride + first, scratch);
  }
}
