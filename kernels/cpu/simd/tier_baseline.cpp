// Baseline x86-64, and any other machine: multiply-adds in software, exact and some fifty times slower.
#define ENCODEC_WIDTH 4
#define ENCODEC_NAME "baseline"
#define ENCODEC_TABLE ops_baseline
#include "simd/tier.inl"
