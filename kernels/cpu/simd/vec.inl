// A vector of kWidth floats over GCC/Clang vector extensions. Included inside a tier's own namespace.
//
// ENCODEC_WIDTH may be twice the hardware's: the compiler then splits every operation, and the bits stay the same.

#ifndef ENCODEC_WIDTH
#error "a tier defines ENCODEC_WIDTH"
#endif

#define ENCODEC_INLINE inline __attribute__((always_inline))

constexpr int kWidth = ENCODEC_WIDTH;
typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Bits __attribute__((vector_size(kWidth * 4)));
typedef int32_t Mask __attribute__((vector_size(kWidth * 4)));
typedef float UnalignedVec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef double Wide __attribute__((vector_size(kWidth * 8)));

ENCODEC_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
ENCODEC_INLINE void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }
ENCODEC_INLINE Mask load_words(const int32_t* p) { return reinterpret_cast<Mask>(load(reinterpret_cast<const float*>(p))); }
ENCODEC_INLINE Vec splat(float x) { return x - Vec{}; }
ENCODEC_INLINE Bits bits(Vec x) { return reinterpret_cast<Bits>(x); }
ENCODEC_INLINE Vec from_bits(Bits x) { return reinterpret_cast<Vec>(x); }

// Asks for what lies a page after p: the processors' own prefetching begins anew on every page.
ENCODEC_INLINE void prefetch(const float* p) { __builtin_prefetch(p + 1024); }

// The first `count` < kWidth floats; the rest are zero.
ENCODEC_INLINE Vec load_part(const float* p, int64_t count) {
  Vec x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
}
ENCODEC_INLINE void store_part(float* p, Vec x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = x[i];
}

// The larger of x and low; NaN stays. The compiler makes two instructions of the comparison, on the units that multiply.
#if defined(__AVX512F__) && ENCODEC_WIDTH == 16
ENCODEC_INLINE Vec at_least(Vec x, float low) { return _mm512_max_ps(splat(low), x); }
#elif defined(__AVX2__) && ENCODEC_WIDTH == 8
ENCODEC_INLINE Vec at_least(Vec x, float low) { return _mm256_max_ps(splat(low), x); }
#else
ENCODEC_INLINE Vec at_least(Vec x, float low) { return x < low ? splat(low) : x; }
#endif

#if defined(__AVX512F__) && ENCODEC_WIDTH == 16
ENCODEC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__FMA__) && ENCODEC_WIDTH == 8
ENCODEC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
#elif defined(__FMA__)
ENCODEC_INLINE Vec fma(Vec a, Vec b, Vec c) {
  union Halves {
    Vec whole;
    __m256 half[kWidth / 8];
  } x = {a}, y = {b}, z = {c};
  for (int i = 0; i < kWidth / 8; ++i) x.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
  return x.whole;
}
#elif defined(__aarch64__) && ENCODEC_WIDTH == 4
ENCODEC_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
#else
// Exact without the instruction: a float product is exact in double, and its sum with c is rounded to odd there. After that the rounding
// to float is the only one that shows. (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008.)
ENCODEC_INLINE Vec fma(Vec a, Vec b, Vec c) {
  typedef int64_t WideMask __attribute__((vector_size(kWidth * 8)));
  Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
  Wide addend = __builtin_convertvector(c, Wide);
  Wide sum = product + addend;
  Wide other = sum - product;
  Wide error = (product - (sum - other)) + (addend - other);
  // neither comparison holds where the error is NaN: the sum is then infinite or NaN and stays
  WideMask up = error > 0, down = error < 0, negative = sum < 0;
  WideMask even = ((reinterpret_cast<WideMask>(sum) & 1) == 0) & (up | down);
  WideMask step = (up ^ negative) & 2;  // one step away from zero is +1, towards it -1
  return __builtin_convertvector(reinterpret_cast<Wide>(reinterpret_cast<WideMask>(sum) + ((step - 1) & even)), Vec);
}
#endif

ENCODEC_INLINE float fma_scalar(float a, float b, float c) { return fma(splat(a), splat(b), splat(c))[0]; }

// sum[n] + the product of the low halves of a[n] and b[n] + that of their high halves, as int16. Only where kPairs says that it takes an
// instruction or two; the stand-in for AVX-512 is without, so that a test sees both ways of a search.
#if defined(__AVX512BW__) && ENCODEC_WIDTH == 16
constexpr bool kPairs = true;
ENCODEC_INLINE Mask add_pairs(Mask a, Mask b, Mask sum) {
  return sum + reinterpret_cast<Mask>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
#elif defined(__AVX2__) && ENCODEC_WIDTH == 8
constexpr bool kPairs = true;
ENCODEC_INLINE Mask add_pairs(Mask a, Mask b, Mask sum) {
  return sum + reinterpret_cast<Mask>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
#elif defined(__SSE2__) && ENCODEC_WIDTH == 4
constexpr bool kPairs = true;
ENCODEC_INLINE Mask add_pairs(Mask a, Mask b, Mask sum) {
  return sum + reinterpret_cast<Mask>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
#else
constexpr bool kPairs = false;
ENCODEC_INLINE Mask add_pairs(Mask, Mask, Mask sum) { return sum; }
#endif
