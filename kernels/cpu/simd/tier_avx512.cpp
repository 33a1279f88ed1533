// The AVX-512 tier.
#define ENCODEC_WIDTH 16
#define ENCODEC_NAME "avx512"
#define ENCODEC_TABLE ops_avx512
#include "simd/tier.inl"
