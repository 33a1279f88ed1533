// Winograd's input transform, and the sums and differences of his output transform. Included inside a tier's own namespace after
// simd/elementary.inl.

// Of a group's frames, a vector of columns each.
ENCODEC_INLINE void transform_terms(const Vec (&x)[3], Vec (&terms)[3]) {
  terms[0] = x[1];
  terms[1] = x[0] - x[1];
  terms[2] = x[1] - x[2];
}
ENCODEC_INLINE void transform_terms(const Vec (&x)[4], Vec (&terms)[4]) {
  terms[0] = x[1] + x[2];
  terms[1] = x[2] - x[1];
  terms[2] = x[0] - x[2];
  terms[3] = x[1] - x[3];
}

struct WholeVector {
  ENCODEC_INLINE Vec get(const float* p) const { return load(p); }
  ENCODEC_INLINE void put(float* p, Vec y) const { store(p, y); }
};
struct PartOfVector {
  int64_t count;
  ENCODEC_INLINE Vec get(const float* p) const { return load_part(p, count); }
  ENCODEC_INLINE void put(float* p, Vec y) const { store_part(p, y, count); }
};

// A vector of one group's columns, c and on. frames: those that are not carried.
template <class Function, int kOverlap, int kStep, class Columns>
ENCODEC_INLINE void transform_columns(const InputTransform& t, const float* const (&frames)[kStep], float* out, int64_t c,
                                      const Columns& columns) {
  constexpr int kFrames = kStep + kOverlap;
  Vec x[kFrames], terms[kFrames];
#pragma GCC unroll 4
  for (int i = 0; i < kOverlap; ++i) x[i] = columns.get(t.carried + i * t.width + c);
#pragma GCC unroll 4
  for (int i = 0; i < kStep; ++i) x[kOverlap + i] = Function::apply(columns.get(frames[i] + c));
  transform_terms(x, terms);
#pragma GCC unroll 4
  for (int i = 0; i < kFrames; ++i) columns.put(out + i * t.term_stride + c, terms[i]);
#pragma GCC unroll 4
  for (int i = 0; i < kOverlap; ++i) columns.put(t.carried + i * t.width + c, x[kStep + i]);
}

// Every frame comes out of memory once. Its activation keeps the multipliers busy while the terms are added up and stored.
// t: by value, or the compiler would have to read its fields anew after every store.
template <class Function, int kStep, int kOverlap>
void transform_groups(const InputTransform t) {
  const auto frame = [&t](int64_t n) { return n >= 0 && n < t.count ? t.frames + n * t.width : t.zeros; };
  for (int i = 0; i < kOverlap; ++i) map_with<Function>(frame(t.first + i), t.carried + i * t.width, t.width);
  float* out = t.terms;
  for (int64_t g = 0; g < t.groups; ++g, out += t.stride) {
    const float* frames[kStep];
#pragma GCC unroll 4
    for (int i = 0; i < kStep; ++i) frames[i] = frame(t.first + g * kStep + kOverlap + i);
    int64_t c = 0;
    for (; c + kWidth <= t.width; c += kWidth) {
#pragma GCC unroll 4
      for (int i = 0; i < kStep; ++i) prefetch(frames[i] + c);
      transform_columns<Function, kOverlap>(t, frames, out, c, WholeVector());
    }
    if (const int64_t rest = t.width - c; rest > 0) transform_columns<Function, kOverlap>(t, frames, out, c, PartOfVector{rest});
  }
}

template <class Function>
void transform_with(const InputTransform& t) {
  if (t.overlap == 2) return transform_groups<Function, 2, 2>(t);
  if (t.step == 3) return transform_groups<Function, 3, 1>(t);
  transform_groups<Function, 2, 1>(t);
}

void input_transform(const InputTransform& t) {
  with_activation(t.activation, [&](auto function) { transform_with<decltype(function)>(t); });
}

void sums_and_differences(float* a, const float* b, float* differences, ptrdiff_t stride, int64_t rows, int64_t width) {
  for (int64_t m = 0; m < rows; ++m, a += width, b += width, differences += stride) {
    int64_t c = 0;
    for (; c + kWidth <= width; c += kWidth) {
      const Vec x = load(a + c), y = load(b + c);
      store(a + c, x + y);
      store(differences + c, x - y);
    }
    for (; c < width; ++c) {
      const float x = a[c], y = b[c];
      a[c] = x + y;
      differences[c] = x - y;
    }
  }
}
