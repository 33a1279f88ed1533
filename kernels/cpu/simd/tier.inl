// Everything that depends on the instruction set. Each tier_*.cpp includes this once, compiled with its own flags.
//
// No standard-library template may be used below: its one definition, compiled for a wide tier, could be the one that the
// linker gives to all the others.

#include "simd/ops.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace encodec {
namespace {

#include "simd/vec.inl"
#include "simd/elementary.inl"
#include "simd/norm.inl"
#include "simd/transform.inl"
#include "simd/product.inl"
#include "simd/shortlist.inl"
#include "simd/search.inl"
#include "simd/attention.inl"

}  // namespace

extern const Ops ENCODEC_TABLE;
const Ops ENCODEC_TABLE = {
    ENCODEC_NAME, packed_size, pack, product, activate, add_all, input_transform, sums_and_differences,
    lstm_cell, moments, affine, affine_sum, search, search_scratch, rounded_size, round_entries,
    layer_norm, attend, softmax_weights, map};

}  // namespace encodec
