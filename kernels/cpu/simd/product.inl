// The matrix product: register tiles of kRows x kVecs vectors over packed panels. Included inside a tier's own namespace.
//
// A panel is kVecs vectors of columns (the last one as many as it needs), its weights lying [depth][panel width]. An output
// element is the sum of chains of fused multiply-adds over fixed stretches of the depth: no choice of tile or panel touches its bits.

#if ENCODEC_WIDTH == 16 || defined(__aarch64__)
// 32 vector registers: 24 accumulators, one vector of weights a step and the broadcasts
constexpr int kMaxVecs = 4;
constexpr int kTileRows[kMaxVecs + 1] = {0, 12, 12, 8, 6};
#else
// 16 vector registers: 12 accumulators, two vectors of weights and a broadcast
constexpr int kMaxVecs = 2;
constexpr int kTileRows[kMaxVecs + 1] = {0, 12, 6};
#endif
constexpr int kAccumulators = kMaxVecs * kTileRows[kMaxVecs];
constexpr int kPanel = kMaxVecs * kWidth;
// Terms of a chain, and the depth of a pass over all rows, in every tier: the bits depend on it. A single chain over a convolution's 3,584
// terms errs more than the blocked sums of the libraries that transformers uses. A panel's block of weights, at most 64 KiB, stays in
// the second-level cache while the rows go by.
constexpr int64_t kChain = 256;
constexpr int kMaxSegments = 16;
constexpr int kLineBytes = 64;

ENCODEC_INLINE int panel_vecs(int64_t cols) {
  return cols >= kPanel ? kMaxVecs : static_cast<int>((cols + kWidth - 1) / kWidth);
}

int64_t packed_size(int64_t depth, int64_t cols) { return depth * ((cols + kWidth - 1) / kWidth) * kWidth; }

void pack(const float* weight, const int64_t* row_offsets, const int64_t* col_offsets, float scale, int64_t depth,
          int64_t cols, float* packed) {
  for (int64_t first = 0; first < cols; first += kPanel) {
    int64_t width = panel_vecs(cols - first) * kWidth;
    int64_t valid = cols - first < width ? cols - first : width;
    for (int64_t k = 0; k < depth; ++k, packed += width) {
      const float* source = weight + row_offsets[k];
      for (int64_t n = 0; n < valid; ++n) packed[n] = source[col_offsets[first + n]] * scale;
      for (int64_t n = valid; n < width; ++n) packed[n] = 0.0f;
    }
  }
}

// What register tiles that lie below one another read and write. Panels lie panel_stride floats apart.
struct Tiles {
  int64_t count;
  const Segment* segments;
  int64_t segment_count;
  int64_t row;
  const float* weight;
  ptrdiff_t panel_stride;
  const float* bias;
  const float* addend;
  ptrdiff_t addend_stride;
  float* out;
  ptrdiff_t out_stride;
  // Weights that a later tile reads: a tile asks for kLines lines of them at each step of the depth.
  const char* ahead;
  ptrdiff_t ahead_step;
};

// Every loop over rows or columns of a tile is unrolled whole (up to 24 turns): a sum that an index picks would lie in memory.
//
// Tiles of kRows rows that ask for kLines lines ahead at each step. With kPanels > 1 a tile of few rows has chains enough to hide
// the latency of a multiply-add.
template <int kRows, int kVecs, int kPanels, int kLines = 1>
void run_tiles(const Tiles& tiles) {
  constexpr int kCols = kVecs * kPanels;
  float* out = tiles.out;
  const float* addend = tiles.addend;
  const char* ahead = tiles.ahead;
  for (int64_t t = 0; t < tiles.count; ++t, out += kRows * tiles.out_stride) {
    Vec acc[kRows][kCols];
#pragma GCC unroll 32
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 32
      for (int v = 0; v < kCols; ++v)
        acc[m][v] = tiles.bias ? load(tiles.bias + v * kWidth) : Vec{};
    // a store to a line in the last-level cache waits for the line: the next tile's are asked for now
#pragma GCC unroll 32
    for (int m = 0; m < kRows && kPanels == 1; ++m) __builtin_prefetch(out + (kRows + m) * tiles.out_stride, 1);

    const float* weight = tiles.weight;
    for (int64_t s = 0; s < tiles.segment_count; ++s) {
      const Segment& segment = tiles.segments[s];
      const ptrdiff_t stride = segment.row_stride;
      const float* left = segment.data + (tiles.row + t * kRows) * stride;
      for (int64_t k = 0; k < segment.length; ++k, ++left, weight += kVecs * kWidth) {
        Vec column[kRows <= 4 && kPanels > 1 ? 1 : kCols];
        if constexpr (kPanels == 1) {
#pragma GCC unroll 4
          for (int line = 0; line < kLines; ++line) __builtin_prefetch(ahead + line * kLineBytes);
          ahead += tiles.ahead_step;
#pragma GCC unroll 32
          for (int v = 0; v < kCols; ++v) column[v] = load(weight + v * kWidth);
#pragma GCC unroll 32
          for (int m = 0; m < kRows; ++m) {
            Vec x = splat(left[m * stride]);
#pragma GCC unroll 32
            for (int v = 0; v < kCols; ++v) acc[m][v] = fma(x, column[v], acc[m][v]);
          }
        } else {
          Vec x[kRows];
#pragma GCC unroll 32
          for (int m = 0; m < kRows; ++m) x[m] = splat(left[m * stride]);
#pragma GCC unroll 32
          for (int v = 0; v < kCols; ++v) {
            column[0] = load(weight + (v / kVecs) * tiles.panel_stride + (v % kVecs) * kWidth);
#pragma GCC unroll 32
            for (int m = 0; m < kRows; ++m) acc[m][v] = fma(x[m], column[0], acc[m][v]);
          }
        }
      }
    }

#pragma GCC unroll 32
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 32
      for (int v = 0; v < kCols; ++v) {
        Vec y = acc[m][v];
        if (!tiles.bias) y = y + load(out + m * tiles.out_stride + v * kWidth);
        if (addend) y = y + load(addend + m * tiles.addend_stride + v * kWidth);
        store(out + m * tiles.out_stride + v * kWidth, y);
      }
    if (addend) addend += kRows * tiles.addend_stride;
  }
}

using TilesKernel = void (*)(const Tiles&);

// Tiles of `rows` rows, rows <= kTileRows[kVecs], over one panel.
template <int kVecs, int kLines = 1, int kRows = kTileRows[kVecs]>
void run_rows(int64_t rows, const Tiles& tiles) {
  if (rows == kRows) return run_tiles<kRows, kVecs, 1, kLines>(tiles);
  if constexpr (kRows > 1) run_rows<kVecs, kLines, kRows - 1>(rows, tiles);
}

// As run_rows over a panel of which a step is several lines: a tile that has few others beside it asks for more of them each.
template <int kVecs>
void run_wide_rows(int64_t rows, const Tiles& tiles) {
  constexpr int kStepLines = kVecs * kWidth * static_cast<int>(sizeof(float)) / kLineBytes;
  if constexpr (kStepLines >= 4)
    if (tiles.ahead_step > 2 * kLineBytes) return run_rows<kVecs, 4>(rows, tiles);
  if constexpr (kStepLines >= 2)
    if (tiles.ahead_step > kLineBytes) return run_rows<kVecs, 2>(rows, tiles);
  run_rows<kVecs>(rows, tiles);
}

void run_panel_rows(int vecs, int64_t rows, const Tiles& tiles) {
  switch (vecs) {
    case 1: return run_rows<1>(rows, tiles);
    case 2: return run_rows<2>(rows, tiles);
#if ENCODEC_WIDTH == 16 || defined(__aarch64__)
    case 3: return run_rows<3>(rows, tiles);
    case 4: return run_wide_rows<4>(rows, tiles);
#endif
  }
}

// As run_panel_rows where the panel has fewer columns in memory than in registers.
void run_ragged_panel(int vecs, int64_t rows, int64_t valid, const Tiles& tiles) {
  const int64_t width = vecs * kWidth;
  float out[kAccumulators * kWidth], addend[kAccumulators * kWidth], bias[kPanel] = {};
  Tiles local = tiles;
  local.count = 1;
  local.out = out;
  local.out_stride = local.addend_stride = width;
  if (tiles.bias) {
    for (int64_t n = 0; n < valid; ++n) bias[n] = tiles.bias[n];
    local.bias = bias;
  }
  if (tiles.addend) local.addend = addend;
  for (int64_t first = 0; first < tiles.count * rows; first += rows) {
    local.row = tiles.row + first;
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t n = 0; n < width; ++n) {
        out[m * width + n] = n < valid && !tiles.bias ? tiles.out[(first + m) * tiles.out_stride + n] : 0.0f;
        addend[m * width + n] = n < valid && tiles.addend ? tiles.addend[(first + m) * tiles.addend_stride + n] : 0.0f;
      }
    run_panel_rows(vecs, rows, local);
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t n = 0; n < valid; ++n) tiles.out[(first + m) * tiles.out_stride + n] = out[m * width + n];
  }
}

// One pass over a block of depth that begins at `depth_start`; the tiles name its segments.
struct Pass {
  const Product* product;
  Tiles tiles;
  int64_t depth_start, depth;
  bool first, last;

  // Points the tiles at rows from `row` and columns from `col` of a panel of `width` columns.
  ENCODEC_INLINE void move_to(int64_t row, int64_t col, int64_t width) {
    const Product& p = *product;
    tiles.row = row;
    tiles.weight = p.weight + col * p.depth + depth_start * width;
    tiles.bias = first && p.bias ? p.bias + col : nullptr;
    tiles.addend = last && p.addend ? p.addend + row * p.addend_stride + col : nullptr;
    tiles.out = p.out + row * p.out_stride + col;
  }

  // The weights that are read after those of the panel at `col`: the next panel's, or where the next pass or product begins.
  ENCODEC_INLINE const float* next_block(int64_t col, int64_t width) const {
    const Product& p = *product;
    const int64_t next = col + width;
    if (next < p.cols) return p.weight + next * p.depth + depth_start * panel_vecs(p.cols - next) * kWidth;
    return p.weight + (last ? 0 : (depth_start + depth) * panel_vecs(p.cols) * kWidth);
  }
};

// Up to three rows: as many full panels at once as the registers hold. Returns the columns done.
int64_t run_few_rows(Pass& pass) {
  constexpr int kPanelsOfOne = kAccumulators / kMaxVecs;
  const Product& p = *pass.product;
  const TilesKernel kernels[] = {run_tiles<1, kMaxVecs, kPanelsOfOne>, run_tiles<2, kMaxVecs, kPanelsOfOne / 2>,
                                 run_tiles<3, kMaxVecs, kPanelsOfOne / 3>};
  const int64_t cols = kPanelsOfOne / p.rows * kPanel;
  int64_t col = 0;
  pass.tiles.count = 1;
  for (; col + cols <= p.cols; col += cols) {
    pass.move_to(0, col, kPanel);
    kernels[p.rows - 1](pass.tiles);
  }
  return col;
}

void run_pass(Pass& pass) {
  const Product& p = *pass.product;
  for (int64_t col = p.rows <= 3 ? run_few_rows(pass) : 0; col < p.cols; col += kPanel) {
    const int vecs = panel_vecs(p.cols - col);
    const int64_t width = vecs * kWidth;
    const int64_t valid = p.cols - col < width ? p.cols - col : width;
    // rows are shared out evenly: 8 rows are 4 + 4, not 6 + 2
    const int64_t count = (p.rows + kTileRows[vecs] - 1) / kTileRows[vecs], height = p.rows / count, higher = p.rows % count;
    pass.tiles.ahead = reinterpret_cast<const char*>(pass.next_block(col, width));
    pass.tiles.ahead_step = (width * sizeof(float) + count - 1) / count;
    int64_t row = 0;
    const auto run = [&](int64_t rows, int64_t tiles) {
      if (tiles == 0) return;
      pass.move_to(row, col, width);
      pass.tiles.count = tiles;
      if (valid == width)
        run_panel_rows(vecs, rows, pass.tiles);
      else
        run_ragged_panel(vecs, rows, valid, pass.tiles);
      pass.tiles.ahead += tiles * pass.depth * pass.tiles.ahead_step;
      row += tiles * rows;
    };
    run(height + 1, higher);
    run(height, count - higher);
  }
}

void product(const Product& p) {
  Segment slices[kMaxSegments];
  Pass pass = {&p, {}, 0, 0, true, false};
  pass.tiles.segments = slices;
  pass.tiles.panel_stride = p.depth * kPanel;
  pass.tiles.addend_stride = p.addend_stride;
  pass.tiles.out_stride = p.out_stride;
  int64_t segment = 0, offset = 0;
  while (!pass.last && p.rows > 0) {
    int64_t count = 0, depth = 0;
    while (segment < p.segment_count && count < kMaxSegments && depth < kChain) {
      const Segment& s = p.segments[segment];
      const int64_t length = s.length - offset < kChain - depth ? s.length - offset : kChain - depth;
      slices[count++] = {s.data + offset, s.row_stride, length};
      depth += length;
      offset += length;
      if (offset == s.length) ++segment, offset = 0;
    }
    pass.tiles.segment_count = count;
    pass.depth = depth;
    pass.last = segment == p.segment_count;
    run_pass(pass);
    pass.first = false;
    pass.depth_start += depth;
  }
}
