// The AVX2+FMA tier.
#define ENCODEC_WIDTH 8
#define ENCODEC_NAME "avx2"
#define ENCODEC_TABLE ops_avx2
#include "simd/tier.inl"
