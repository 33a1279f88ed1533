#include "simd/tiers.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace encodec {

#if defined(__x86_64__)
extern const Ops ops_avx512, ops_avx2, ops_avx512_emulated, ops_baseline;
#elif defined(__aarch64__)
extern const Ops ops_neon, ops_baseline;
#else
extern const Ops ops_baseline;
#endif

namespace {

struct Candidate {
  const Ops* ops;
  bool (*runs)();
};

bool always() { return true; }

#if defined(__x86_64__)
// The compiler's builtin also asks the operating system (XGETBV) whether it saves the wide registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() { return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }

// Best first; baseline before the stand-in, which is for tests and only chosen by name.
const Candidate kCandidates[] = {
    {&ops_avx512, has_avx512}, {&ops_avx2, has_avx2}, {&ops_baseline, always}, {&ops_avx512_emulated, has_avx2}};
#elif defined(__aarch64__)
const Candidate kCandidates[] = {{&ops_neon, always}, {&ops_baseline, always}};
#else
const Candidate kCandidates[] = {{&ops_baseline, always}};
#endif

}  // namespace

const Ops* tier(int64_t n) {
  for (const Candidate& candidate : kCandidates)
    if (candidate.runs() && n-- == 0) return candidate.ops;
  return nullptr;
}

const Ops& find_tier(const char* name) {
  if (!name) return *tier(0);
  std::string known;
  for (int64_t n = 0; const Ops* ops = tier(n); ++n) {
    if (std::strcmp(ops->name, name) == 0) return *ops;
    known += (n ? ", " : "") + std::string(ops->name);
  }
  throw std::invalid_argument("instruction set '" + std::string(name) + "' does not run here; these do: " + known);
}

}  // namespace encodec
