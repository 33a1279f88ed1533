// exp, elu, sigmoid, tanh and gelu without libm: the same operations in the same order on every tier.
// Included inside a tier's own namespace after simd/vec.inl. Errors, against the exact value over all float32 exponents
// (tests/engine/test_cpu_elementary.py): exp 1.0, elu 1.0, sigmoid 2.5, tanh 2.6 units in the last place. NaN gives NaN.

// e^x = 2^n * e^r with |r| <= log(2) / 2. The addition of 1.5 * 2^23 rounds to the nearest integer and leaves n in the low
// mantissa bits.
constexpr float kLog2E = 0x1.715476p+0f, kRound = 0x1.8p+23f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;

struct Reduced {
  Bits exponent;  // n in the low bits
  Vec poly;       // e^r - 1
};

ENCODEC_INLINE Reduced reduce(Vec x) {
  Vec shifted = fma(x, splat(kLog2E), splat(kRound));
  Vec n = shifted - kRound;
  Vec r = fma(n, splat(-kLn2High), x);
  r = fma(n, splat(-kLn2Low), r);
  // (e^r - 1 - r) / r^2, minimax in the relative error of e^r - 1: 0.01 units in the last place
  Vec q = fma(r, splat(0x1.9e7d6p-13f), splat(0x1.6d3aap-10f));
  q = fma(r, q, splat(0x1.1112d4p-7f));
  q = fma(r, q, splat(0x1.5554f8p-5f));
  q = fma(r, q, splat(0x1.555554p-3f));
  q = fma(r, q, splat(0.5f));
  return {bits(shifted), fma(r * r, q, r)};
}

// e^x - 1 for x <= 0.
ENCODEC_INLINE Vec expm1_negative(Vec x) {
  Reduced e = reduce(at_least(x, -25.0f));
  Vec power = from_bits((e.exponent << 23) + 0x3f800000u);
  return fma(power, e.poly, power - 1.0f);
}

// e^x for x <= 0, down to the smallest subnormal: the power of two is applied in two halves.
ENCODEC_INLINE Vec exp_negative(Vec x) {
  Reduced e = reduce(at_least(x, -104.0f));
  Bits n = e.exponent - 0x4b400000u + 256u;  // 0 <= n: the shift below must not see a sign
  Bits half = n >> 1;
  Vec first = from_bits((half + (127u - 128u)) << 23);
  Vec second = from_bits((n - half + (127u - 128u)) << 23);
  return (first + e.poly * first) * second;
}

ENCODEC_INLINE Vec elu(Vec x) {
  Vec negative = expm1_negative(x);
  return x > 0.0f ? x : negative;
}

ENCODEC_INLINE Vec magnitude(Vec x) { return from_bits(bits(x) & 0x7fffffffu); }

ENCODEC_INLINE Vec sigmoid(Vec x) {
  Vec e = exp_negative(-magnitude(x));
  Vec top = x < 0.0f ? e : splat(1.0f);
  return top / (1.0f + e);
}

ENCODEC_INLINE Vec tanh(Vec x) {
  Vec e = expm1_negative(-2.0f * magnitude(x));
  Vec y = magnitude(e) / (2.0f + e);
  return from_bits(bits(y) | (bits(x) & 0x80000000u));
}

// x * P(normal <= x), by erfc alone: 1 - erf would cancel. With z = |x| / sqrt(2), erfc(z) = e^(-z * q(z)). q is minimax on
// [0, 5] in the absolute error of erfc; beyond it, q(5) goes on, and the result's magnitude is below 1e-10.
ENCODEC_INLINE Vec gelu(Vec x) {
  Vec z = magnitude(x) * splat(0x1.6a09e6p-1f);
  Vec t = -at_least(-z, -5.0f);
  Vec q = fma(t, splat(-0x1.5f4e6ep-31f), splat(0x1.d7c27p-26f));
  q = fma(t, q, splat(-0x1.1c2c06p-21f));
  q = fma(t, q, splat(0x1.9754ccp-18f));
  q = fma(t, q, splat(-0x1.830bp-15f));
  q = fma(t, q, splat(0x1.fe5e32p-13f));
  q = fma(t, q, splat(-0x1.d10cfp-11f));
  q = fma(t, q, splat(0x1.037cd2p-9f));
  q = fma(t, q, splat(-0x1.9cf272p-12f));
  q = fma(t, q, splat(-0x1.382038p-6f));
  q = fma(t, q, splat(0x1.a4e086p-4f));
  q = fma(t, q, splat(0x1.45f358p-1f));
  q = fma(t, q, splat(0x1.20dd74p+0f));
  Vec tail = 0.5f * exp_negative(-(z * q));
  return x > 0.0f ? fma(-x, tail, x) : x * tail;
}

struct Identity {
  static ENCODEC_INLINE Vec apply(Vec x) { return x; }
};
struct Exp {
  static ENCODEC_INLINE Vec apply(Vec x) { return exp_negative(x); }
};
struct Elu {
  static ENCODEC_INLINE Vec apply(Vec x) { return elu(x); }
};
struct Sigmoid {
  static ENCODEC_INLINE Vec apply(Vec x) { return sigmoid(x); }
};
struct Tanh {
  static ENCODEC_INLINE Vec apply(Vec x) { return tanh(x); }
};

struct Gelu {
  static ENCODEC_INLINE Vec apply(Vec x) { return gelu(x); }
};

template <class Function>
void map_with(const float* x, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    prefetch(x + i);
    store(out + i, Function::apply(load(x + i)));
  }
  if (i < count) store_part(out + i, Function::apply(load_part(x + i, count - i)), count - i);
}

void map(int function, const float* x, float* out, int64_t count) {
  switch (function) {
    case 0: return map_with<Exp>(x, out, count);
    case 1: return map_with<Elu>(x, out, count);
    case 2: return map_with<Sigmoid>(x, out, count);
    case 3: return map_with<Tanh>(x, out, count);
    default: return map_with<Gelu>(x, out, count);
  }
}

// Calls body with the activation's function, a value of its type.
template <class Body>
ENCODEC_INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kNone: return body(Identity());
    case Activation::kElu: return body(Elu());
  }
}

void activate(Activation activation, const float* x, float* out, int64_t count) {
  with_activation(activation, [&](auto function) { map_with<decltype(function)>(x, out, count); });
}

void add_all(const float* a, const float* b, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

ENCODEC_INLINE void lstm_lanes(Vec in, Vec forget, Vec cell, Vec out, Vec& c, Vec& h) {
  c = fma(sigmoid(forget), c, sigmoid(in) * tanh(cell));
  h = sigmoid(out) * tanh(c);
}

void lstm_cell(const float* gates, float* c, float* h, int64_t hidden) {
  const float *in = gates, *forget = gates + hidden, *cell = gates + 2 * hidden, *out = gates + 3 * hidden;
  int64_t j = 0;
  Vec c_next, h_next;
  for (; j + kWidth <= hidden; j += kWidth) {
    c_next = load(c + j);
    lstm_lanes(load(in + j), load(forget + j), load(cell + j), load(out + j), c_next, h_next);
    store(c + j, c_next);
    store(h + j, h_next);
  }
  if (int64_t rest = hidden - j; rest > 0) {
    c_next = load_part(c + j, rest);
    lstm_lanes(load_part(in + j, rest), load_part(forget + j, rest), load_part(cell + j, rest),
               load_part(out + j, rest), c_next, h_next);
    store_part(c + j, c_next, rest);
    store_part(h + j, h_next, rest);
  }
}
