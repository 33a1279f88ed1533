// The NEON tier.
#define ENCODEC_WIDTH 4
#define ENCODEC_NAME "neon"
#define ENCODEC_TABLE ops_neon
#include "simd/tier.inl"
