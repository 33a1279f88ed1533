// The AVX-512 tier's tiles and panels on AVX2 hardware, each vector split in two: a test's stand-in, never chosen by itself.
#define ENCODEC_WIDTH 16
#define ENCODEC_NAME "avx512_emulated"
#define ENCODEC_TABLE ops_avx512_emulated
#include "simd/tier.inl"
