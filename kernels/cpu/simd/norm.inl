// Group norms: the sums of their moments, and the map that they come to. Included inside a tier's own namespace after simd/elementary.inl.

// Rows summed in float before their sums join the doubles: a divisor of every layer's block, so that the groups are the same for
// any block. Sixteen roundings at random weigh nothing beside the 2^-24 of what the norm is applied to.
constexpr int64_t kMomentRows = 16;

// Of kCols vectors of channels at once: one alone would wait for its own additions.
template <int kCols>
void moments_of(const float* x, int64_t rows, int64_t channels, const float* pivot, double* sums) {
  Vec zero[kCols];
  for (int v = 0; v < kCols; ++v) zero[v] = load(pivot + v * kWidth);
  for (int64_t first = 0; first < rows; first += kMomentRows) {
    const int64_t end = first + kMomentRows < rows ? first + kMomentRows : rows;
    Vec sum[kCols] = {}, squares[kCols] = {};
    for (int64_t t = first; t < end; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < kCols; ++v) {
        const Vec value = load(x + t * channels + v * kWidth) - zero[v];
        sum[v] = sum[v] + value;
        squares[v] = squares[v] + value * value;
      }
    for (int v = 0; v < kCols; ++v)
      for (int n = 0; n < kWidth; ++n) {
        sums[v * kWidth + n] += static_cast<double>(sum[v][n]);
        sums[channels + v * kWidth + n] += static_cast<double>(squares[v][n]);
      }
  }
}

// Of one channel; the last ones, and the few of a clip's audio.
void moments_of_one(const float* x, int64_t rows, int64_t channels, float pivot, double* sums) {
  for (int64_t first = 0; first < rows; first += kMomentRows) {
    const int64_t end = first + kMomentRows < rows ? first + kMomentRows : rows;
    float sum = 0, squares = 0;
    for (int64_t t = first; t < end; ++t) {
      const float value = x[t * channels] - pivot;
      sum += value;
      squares += value * value;
    }
    sums[0] += static_cast<double>(sum);
    sums[channels] += static_cast<double>(squares);
  }
}

void moments(const float* x, int64_t rows, int64_t channels, const float* pivot, double* sums) {
  int64_t c = 0;
  for (; c + 4 * kWidth <= channels; c += 4 * kWidth) moments_of<4>(x + c, rows, channels, pivot + c, sums + c);
  for (; c + 2 * kWidth <= channels; c += 2 * kWidth) moments_of<2>(x + c, rows, channels, pivot + c, sums + c);
  for (; c + kWidth <= channels; c += kWidth) moments_of<1>(x + c, rows, channels, pivot + c, sums + c);
  for (; c < channels; ++c) moments_of_one(x + c, rows, channels, pivot[c], sums + c);
}

// A vector of a row from channel c on, mapped; `count` < kWidth of them are there.
ENCODEC_INLINE Vec mapped(const float* x, const Affine& map, int64_t c) {
  return fma(load(x + c) - splat(map.mean), load(map.scale + c), load(map.shift + c));
}
ENCODEC_INLINE Vec mapped_part(const float* x, const Affine& map, int64_t c, int64_t count) {
  return fma(load_part(x + c, count) - splat(map.mean), load_part(map.scale + c, count), load_part(map.shift + c, count));
}

template <class Function>
void affine_with(const float* x, float* out, int64_t rows, const Affine& map) {
  if (map.channels < kWidth && kWidth % map.channels == 0) {
    // rows that fit a vector several at once, as one row
    const int64_t together = kWidth / map.channels, vectors = rows / together;
    float scale[kWidth], shift[kWidth];
    for (int n = 0; n < kWidth; ++n) scale[n] = map.scale[n % map.channels], shift[n] = map.shift[n % map.channels];
    affine_with<Function>(x, out, vectors, {kWidth, map.mean, scale, shift});
    x += vectors * kWidth;
    out += vectors * kWidth;
    rows -= vectors * together;
  }
  for (int64_t t = 0; t < rows; ++t, x += map.channels, out += map.channels) {
    int64_t c = 0;
    for (; c + kWidth <= map.channels; c += kWidth) {
      prefetch(x + c);
      store(out + c, Function::apply(mapped(x, map, c)));
    }
    if (int64_t rest = map.channels - c; rest > 0) store_part(out + c, Function::apply(mapped_part(x, map, c, rest)), rest);
  }
}

void affine(const float* x, float* out, int64_t rows, const Affine& map, Activation activation) {
  with_activation(activation, [&](auto function) { affine_with<decltype(function)>(x, out, rows, map); });
}

void affine_sum(float* out, const Affine& map, const float* other, const Affine* other_map, int64_t rows) {
  for (int64_t t = 0; t < rows; ++t, other += map.channels, out += map.channels) {
    int64_t c = 0;
    for (; c + kWidth <= map.channels; c += kWidth)
      store(out + c, mapped(out, map, c) + (other_map ? mapped(other, *other_map, c) : load(other + c)));
    if (int64_t rest = map.channels - c; rest > 0) {
      const Vec addend = other_map ? mapped_part(other, *other_map, c, rest) : load_part(other + c, rest);
      store_part(out + c, mapped_part(out, map, c, rest) + addend, rest);
    }
  }
}
