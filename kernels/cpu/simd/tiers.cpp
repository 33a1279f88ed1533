#include "simd/tiers.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

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
struct Sets {
  bool avx2 = false, avx512 = false;
};

// Not __builtin_cpu_supports: the runtime of some compilers built on clang, such as zig's, answers no to everything.
Sets detect() {
  constexpr unsigned kFma = 1u << 12, kXsave = 1u << 27, kAvx = 1u << 28;         // leaf 1, ecx
  constexpr unsigned kAvx2 = 1u << 5, kAvx512F = 1u << 16, kAvx512Bw = 1u << 30;  // leaf 7, ebx
  constexpr unsigned kYmmState = 0x06, kZmmState = 0xe6;                          // XCR0: what the system saves
  const auto has = [](unsigned word, unsigned bits) { return (word & bits) == bits; };
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has(ecx, kFma | kXsave | kAvx)) return {};
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return {};
  unsigned saved, upper;
  asm volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  const bool avx2 = has(saved, kYmmState) && has(ebx, kAvx2);
  return {avx2, avx2 && has(saved, kZmmState) && has(ebx, kAvx512F | kAvx512Bw)};
}

const Sets& sets() {
  static const Sets found = detect();
  return found;
}

bool has_avx2() { return sets().avx2; }
bool has_avx512() { return sets().avx512; }

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
