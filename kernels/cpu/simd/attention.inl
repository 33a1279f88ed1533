// Attention, layer norm and softmax of the language model. Included inside a tier's own namespace after simd/elementary.inl.
//
// On every tier, sums over a row or a window go in 16 lanes: element i to lane `i % 16`. The lanes are then halved: 8, 4, 2, 1.

constexpr int kLanes = static_cast<int>(kBlockKeys), kParts = kLanes / kWidth;

ENCODEC_INLINE float sum_lanes(const Vec (&parts)[kParts]) {
  float lanes[kLanes];
  for (int part = 0; part < kParts; ++part) store(lanes + part * kWidth, parts[part]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

void layer_norm(const LayerNorm& norm, const float* x, float* out, int64_t rows) {
  const auto width = static_cast<float>(norm.width);
  for (int64_t row = 0; row < rows; ++row, x += norm.stride, out += norm.stride) {
    Vec sum[kParts] = {}, squares[kParts] = {};
    for (int64_t i = 0; i < norm.stride; i += kLanes)
      for (int part = 0; part < kParts; ++part) sum[part] = sum[part] + load(x + i + part * kWidth);
    const Vec mean = splat(sum_lanes(sum) / width);
    for (int64_t i = 0; i < norm.stride; i += kWidth) store(out + i, load(x + i) - mean);
    for (int64_t i = norm.width; i < norm.stride; ++i) out[i] = 0.0f;
    for (int64_t i = 0; i < norm.stride; i += kLanes)
      for (int part = 0; part < kParts; ++part) {
        const Vec value = load(out + i + part * kWidth);
        squares[part] = fma(value, value, squares[part]);
      }
    const Vec scale = splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / width + norm.eps));
    for (int64_t i = 0; i < norm.stride; i += kWidth)
      store(out + i, fma(load(out + i) * scale, load(norm.weight + i), load(norm.bias + i)));
  }
}

// What a tile of attention works on: kRows queries in a row of time, of kHeads heads.
struct AttentionTile {
  int64_t row, head;
  int64_t first, last;     // the keys that any of its rows attends to
  int64_t first_block, span;  // scores of a row and head, those of whole blocks
};

// Products of queries and keys; those of keys outside of a row's window mean nothing.
template <int kRows, int kHeads>
void score(const Attention& a, const AttentionTile& tile) {
  const float* queries = a.queries + tile.row * a.query_stride + tile.head * a.dim;
  int64_t block = tile.first_block % a.ring_blocks;
  for (int64_t first = 0; first < tile.span; first += kLanes) {
    const float* keys = a.ring + tile.head * a.head_floats + block * a.dim * kLanes;
    block = block + 1 < a.ring_blocks ? block + 1 : 0;
    Vec acc[kRows][kHeads][kParts] = {};
    for (int64_t d = 0; d < a.dim; ++d)
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          const Vec key = load(keys + h * a.head_floats + d * kLanes + part * kWidth);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r)
            acc[r][h][part] = fma(splat(queries[r * a.query_stride + h * a.dim + d]), key, acc[r][h][part]);
        }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part)
          store(a.scores + (r * kHeads + h) * a.score_stride + first + part * kWidth, acc[r][h][part]);
  }
}

// The lanes of a vector that begins at key `begin` which lie in [first, last].
ENCODEC_INLINE Mask between(int64_t begin, int64_t first, int64_t last) {
  Mask lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  const int64_t low = first - begin, high = last - begin;  // both may lie far outside
  const int32_t from = low < 0 ? 0 : low > kWidth ? kWidth : static_cast<int32_t>(low);
  const int32_t to = high < 0 ? -1 : high > kWidth ? kWidth : static_cast<int32_t>(high);
  return (lane >= from) & (lane <= to);
}

ENCODEC_INLINE float greatest_lane(Vec x) {
  float greatest = x[0];
  for (int n = 1; n < kWidth; ++n) greatest = x[n] > greatest ? x[n] : greatest;
  return greatest;
}

// Makes e^(score - greatest) of the scores of keys [first, last], and 0 of the others. Returns the sum.
float exponentials(float* scores, int64_t begin, int64_t span, int64_t first, int64_t last) {
  const float own = scores[last - begin];
  Vec most = splat(own), sum[kParts] = {};
  for (int64_t i = 0; i < span; i += kWidth) {
    const Vec x = between(begin + i, first, last) ? load(scores + i) : splat(own);
    most = x > most ? x : most;
  }
  const float greatest = greatest_lane(most);
  for (int64_t i = 0; i < span; i += kLanes)
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = i + part * kWidth;
      const Vec power = exp_negative(load(scores + at) - splat(greatest));
      const Vec kept = between(begin + at, first, last) ? power : Vec{};
      store(scores + at, kept);
      sum[part] = sum[part] + kept;
    }
  return sum_lanes(sum);
}

// Vectors of a head's values at once: with them, and four rows or heads, the registers are in use.
constexpr int kValueVecs = kWidth == 4 ? 4 : 2;

// The sums of values, weighted by what `exponentials` made of the scores, over the sum of the weights.
template <int kRows, int kHeads>
void weigh(const Attention& a, const AttentionTile& tile, const float* sums) {
  const int64_t positions = a.ring_blocks * kLanes;
  for (int64_t d = 0; d < a.dim; d += kValueVecs * kWidth) {
    Vec acc[kRows][kHeads][kValueVecs] = {};
    for (int64_t key = tile.first; key <= tile.last;) {
      // up to the ring's end at once
      const int64_t place = key % positions, left = positions - place, end = key + left <= tile.last ? key + left : tile.last + 1;
      const float* values = a.ring + tile.head * a.head_floats + positions * a.dim + place * a.value_stride + d;
      const float* weights = a.scores + key - tile.first_block * kLanes;
      for (; key < end; ++key, values += a.value_stride, ++weights)
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
          for (int v = 0; v < kValueVecs; ++v) {
            const Vec value = load(values + h * a.head_floats + v * kWidth);
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r)
              acc[r][h][v] = fma(splat(weights[(r * kHeads + h) * a.score_stride]), value, acc[r][h][v]);
          }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
        for (int v = 0; v < kValueVecs; ++v) {
          const int64_t at = d + v * kWidth, rest = a.dim - at;
          float* out = a.out + (tile.row + r) * a.out_stride + (tile.head + h) * a.dim + at;
          if (rest > 0) store_part(out, acc[r][h][v] / splat(sums[r * kHeads + h]), rest < kWidth ? rest : kWidth);
        }
  }
}

template <int kRows, int kHeads>
void attend_tile(const Attention& a, int64_t row, int64_t head) {
  const auto oldest = [&](int64_t own) { return own > a.past_context ? own - a.past_context : 0; };
  const int64_t own = a.position + row;
  AttentionTile tile = {row, head, oldest(own), own + kRows - 1, 0, 0};
  tile.first_block = tile.first / kLanes;
  tile.span = (tile.last / kLanes + 1 - tile.first_block) * kLanes;
  score<kRows, kHeads>(a, tile);
  float sums[kRows * kHeads];
  for (int r = 0; r < kRows; ++r)
    for (int h = 0; h < kHeads; ++h) {
      const int task = r * kHeads + h;
      sums[task] = exponentials(a.scores + task * a.score_stride, tile.first_block * kLanes, tile.span, oldest(own + r), own + r);
    }
  weigh<kRows, kHeads>(a, tile, sums);
}

// Four rows of a head where there are so many, else four heads of a row: one sum alone would wait for itself. Of rows, each key and value
// is read once for all four.
void attend(const Attention& a) {
  int64_t row = 0;
  for (; row + 4 <= a.rows; row += 4)
    for (int64_t head = 0; head < a.heads; ++head) attend_tile<4, 1>(a, row, head);
  for (; row < a.rows; ++row) {
    int64_t head = 0;
    for (; head + 4 <= a.heads; head += 4) attend_tile<1, 4>(a, row, head);
    for (; head < a.heads; ++head) attend_tile<1, 1>(a, row, head);
  }
}

bool softmax_weights(const float* logits, int64_t count, int32_t* weights) {
  Vec most = load(logits), broken = {};
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec x = load(logits + i);
    most = x > most ? x : most;
    broken = broken + (x - x);  // NaN from the first infinity or NaN on
  }
  for (int n = 0; n < kWidth; ++n)
    if (broken[n] != 0.0f) return false;
  const float greatest = greatest_lane(most);
  for (int64_t i = 0; i < count; i += kWidth) {
    const Vec power = exp_negative(load(logits + i) - splat(greatest));
    const Mask whole = __builtin_convertvector(power * splat(0x1p22f), Mask) + 1;
    store(reinterpret_cast<float*>(weights + i), reinterpret_cast<Vec>(whole));
  }
  return true;
}
