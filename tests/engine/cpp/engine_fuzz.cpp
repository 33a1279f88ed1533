// Random programs over random clips. Every result must have the same bits for any tier, batch, cutting into pieces and thread
// count. Prints a digest per case for comparison between machines; exits 1, naming the case, where bits differ. The tiers that it
// ran on, which are the machine's own, go to stderr.
//
//     engine_fuzz FIRST_CASE CASES
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "recipes.h"
#include "segments.h"

using namespace recipes;

namespace {

encodec_state* reopened(const encodec_program* program, encodec_state* state) {
  std::vector<char> bytes(encodec_save(state, nullptr, 0));
  if (encodec_save(state, bytes.data(), static_cast<int64_t>(bytes.size())) < 0) fail("encodec_save");
  encodec_close(state);
  encodec_state* again = encodec_load(program, bytes.data(), static_cast<int64_t>(bytes.size()));
  if (!again) fail("encodec_load");
  if (encodec_state* cut = encodec_load(program, bytes.data(), static_cast<int64_t>(bytes.size()) - 1)) {
    encodec_close(cut);
    fail("encodec_load takes a state that was cut short");
  }
  return again;
}

// pieces: the number of pushes. A clip may end before the last one, and between two of them move to another state by its bytes.
std::vector<Clip> run(const encodec_program* program, const Recipe& recipe, const std::vector<Clip>& clips, int threads,
                      int pieces, Random& random) {
  std::vector<Clip> results(clips.size(), Clip(recipe.out_channels));
  std::vector<int64_t> done(clips.size(), 0), lengths(clips.size()), ready(clips.size());
  std::vector<int64_t> final(clips.size(), 0);
  std::vector<bool> ended(clips.size(), false);
  std::vector<encodec_state*> states;
  for (size_t b = 0; b < clips.size(); ++b) {
    states.push_back(encodec_open(program));
    if (!states.back()) fail("encodec_open");
  }
  const auto batch = static_cast<int64_t>(clips.size());
  for (int piece = 1; piece <= pieces; ++piece) {
    for (size_t b = 0; b < clips.size(); ++b) {
      const int64_t left = length_of(clips[b]) - done[b];
      lengths[b] = piece == pieces ? left : random.below(left + 1);
      final[b] = !ended[b] && (piece == pieces || (lengths[b] == left && random.below(2) == 0));
      ended[b] = ended[b] || final[b];
      if (piece > 1 && random.below(4) == 0) states[b] = reopened(program, states[b]);
    }
    if (encodec_ready(states.data(), batch, lengths.data(), final.data(), ready.data())) fail("encodec_ready");
    const Clips x(clips, done, lengths), y(recipe.out_channels, ready);
    const encodec_clips in = x.record(), out = y.record();
    if (encodec_push(states.data(), batch, &in, final.data(), threads, &out)) fail("encodec_push");
    y.append_to(results);
    for (size_t b = 0; b < clips.size(); ++b) done[b] += lengths[b];
  }
  for (encodec_state* state : states) encodec_close(state);
  return results;
}

// The clips that are as long as the first one, as one tensor with room between its rows; the bits of each are those of `expected`.
void check_batch(const encodec_program* program, const Recipe& recipe, const std::vector<Clip>& clips,
                 const std::vector<Clip>& expected, int threads, int64_t number) {
  const int64_t steps = length_of(clips[0]), row = steps + 3, length = encodec_output_length(program, steps), out_row = length + 1;
  if (length < 0 || length != length_of(expected[0])) fail("encodec_output_length");
  std::vector<size_t> members;
  std::vector<float> x;
  for (size_t b = 0; b < clips.size(); ++b) {
    if (length_of(clips[b]) != steps) continue;
    members.push_back(b);
    for (const std::vector<float>& channel : clips[b]) {
      x.insert(x.end(), channel.begin(), channel.end());
      x.resize(x.size() + 3);
    }
  }
  const auto batch = static_cast<int64_t>(members.size());
  std::vector<float> y(batch * recipe.out_channels * out_row, 7.0f);
  if (encodec_run(program, batch, x.data(), steps, recipe.in_channels * row, row, threads, y.data(), length,
                  recipe.out_channels * out_row, out_row))
    fail("encodec_run");
  if (encodec_run(program, batch, x.data(), steps, recipe.in_channels * row, row, threads, y.data(), length + 1,
                  recipe.out_channels * out_row, out_row) != -1)
    fail("encodec_run takes an output of another length");
  const float* found = y.data();
  for (size_t b : members)
    for (const std::vector<float>& channel : expected[b]) {
      if (std::memcmp(found, channel.data(), 4 * length) != 0) fail("case " + std::to_string(number) + ": bits differ by encodec_run");
      if (found[length] != 7.0f) fail("case " + std::to_string(number) + ": encodec_run writes beyond a row");
      found += out_row;
    }
}

// Every cut of time at random: as usual (0), as often as can be, at some bound, or as rarely as can be.
void set_cuts(Random& random, bool usual) {
  for (const char* name : {"clips", "piece", "wave", "task", "lstm_clips", "lstm_rows", "lstm_steps", "tile", "block"}) {
    const int64_t bounds[] = {0, 1, random.between(1, 5000), int64_t{1} << 32};
    if (encodec_set_cut(name, usual ? 0 : bounds[random.below(4)])) fail("encodec_set_cut");
  }
}

void require_same(const std::vector<Clip>& got, const std::vector<Clip>& expected, int64_t number, const std::string& what) {
  bool same = got.size() == expected.size();
  for (size_t b = 0; same && b < got.size(); ++b)
    for (size_t c = 0; same && c < got[b].size(); ++c)
      same = got[b][c].size() == expected[b][c].size() &&
             std::memcmp(got[b][c].data(), expected[b][c].data(), 4 * got[b][c].size()) == 0;
  if (!same) fail("case " + std::to_string(number) + ": bits differ by " + what);
}

uint64_t digest(const std::vector<Clip>& clips) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const Clip& clip : clips)
    for (const std::vector<float>& channel : clip)
      for (float value : channel) {
        uint32_t bits = 0x7fc00000u;  // which NaN is the machine's own choice
        if (value == value) std::memcpy(&bits, &value, 4);
        hash = (hash ^ bits) * 0x100000001b3u;
      }
  return hash;
}

uint64_t network_case(int64_t number) {
  Random random(number);
  const Recipe recipe = random_recipe(random);
  std::vector<Clip> clips(random.between(1, 5), Clip(recipe.in_channels));
  const auto length = [&] { return random.below(3) ? random.between(1, 40) : random.between(1, 1500); };
  const bool alike = random.below(3) == 0;
  const int64_t common = length();
  for (Clip& clip : clips) {
    const int64_t own = alike && random.below(4) ? common : length();
    for (std::vector<float>& channel : clip) channel = random.floats(own, 1.0f);
  }
  std::vector<Clip> first;
  for (int64_t n = 0; const char* tier = encodec_tier(n); ++n) {
    encodec_program* program = build(recipe, tier);
    const std::vector<Clip> whole = run(program, recipe, clips, 1, 1, random);
    if (n == 0) first = whole;
    const std::string name = std::string(" on ") + tier;
    require_same(whole, first, number, "tier" + name);
    const auto twice = [&] { return 2 * random.between(1, static_cast<int64_t>(clips.size())); };
    const auto threads = [&] { return static_cast<int>(random.below(3) ? random.between(2, 12) : twice()); };
    require_same(run(program, recipe, clips, threads(), 1, random), first, number, "threads" + name);
    if (!recipe.whole) {
      const int pieces = static_cast<int>(random.between(2, 6));
      require_same(run(program, recipe, clips, threads(), pieces, random), first, number, "pieces" + name);
    }
    for (size_t b = 0; b < clips.size(); ++b)
      require_same(run(program, recipe, {clips[b]}, threads(), 1, random), {first[b]}, number, "batch" + name);
    check_batch(program, recipe, clips, first, threads(), number);
    set_cuts(random, false);
    require_same(run(program, recipe, clips, threads(), 1, random), first, number, "cuts" + name);
    if (!recipe.whole) require_same(run(program, recipe, clips, threads(), 3, random), first, number, "cuts and pieces" + name);
    set_cuts(random, true);
    encodec_program_free(program);
  }
  return digest(first);
}

// The clips together, and the first one alone, on one to eight threads.
void require_same_on_threads(const Recipe& recipe, const std::vector<Clip>& clips, Random& random, const std::string& what) {
  encodec_program* program = build(recipe, encodec_tier(0));
  const std::vector<Clip> whole = run(program, recipe, clips, 1, 1, random);
  for (int threads = 2; threads <= 8; ++threads) {
    require_same(run(program, recipe, clips, threads, 1, random), whole, -1, what);
    require_same(run(program, recipe, {clips[0]}, threads, 1, random), {whole[0]}, -1, what + ", one clip");
  }
  encodec_program_free(program);
}

// Once rows were lost here: of the second wave's clips, a piece could begin before the first output that the upsampling's trim leaves.
void trimmed_case() {
  Random random(1);
  Recipe recipe;
  const int64_t channels = recipe.in_channels = 4;
  Recipe::Stage lstm = {}, upsample = {};
  lstm.kind = 3;
  lstm.channels = channels;
  lstm.layers = 1;
  for (int64_t size : {4 * channels * channels, 4 * channels * channels, 4 * channels, 4 * channels})
    lstm.weights.push_back(recipe.keep(random.floats(size, 0.4f)));
  upsample.kind = 2;
  recipe.out_channels = 5;
  upsample.convs[0] = random_conv(random, recipe, channels, recipe.out_channels, 6, 2, 1, true);
  recipe.stages.push_back(std::move(lstm));
  recipe.stages.push_back(std::move(upsample));
  std::vector<Clip> clips(3, Clip(channels));
  for (size_t b = 0; b < clips.size(); ++b)
    for (std::vector<float>& channel : clips[b]) channel = random.floats(b < 2 ? 26 : 1, 1.0f);
  require_same_on_threads(recipe, clips, random, "threads, trimmed");
}

// Normed clips long enough for many blocks, which idle threads share: fewer clips than threads, as many, and one more.
void normed_case() {
  Random random(2);
  Recipe recipe;
  recipe.whole = true;
  const int64_t channels = recipe.in_channels = 30;
  Recipe::Stage residual = random_residual(random, recipe, channels, 17, 3, 1, false, true), upsample = {};
  upsample.kind = 2;
  recipe.out_channels = 2;
  upsample.convs[0] = random_conv(random, recipe, channels, recipe.out_channels, 4, 2, 1, false);
  recipe.stages.push_back(std::move(residual));
  recipe.stages.push_back(std::move(upsample));
  std::vector<Clip> clips(3, Clip(channels));
  for (size_t b = 0; b < clips.size(); ++b)
    for (std::vector<float>& channel : clips[b]) channel = random.floats(3000 + 700 * static_cast<int64_t>(b), 1.0f);
  require_same_on_threads(recipe, clips, random, "threads, normed");
}

// The first frames of all clips, as one tensor: a frame's codes are its own.
void check_search(const encodec_codebooks* books, const std::vector<Clip>& clips, const std::vector<std::vector<int64_t>>& codes,
                  int64_t levels, int threads, int64_t number) {
  int64_t frames = length_of(clips[0]);
  for (const Clip& clip : clips) frames = std::min(frames, length_of(clip));
  const auto batch = static_cast<int64_t>(clips.size()), dim = static_cast<int64_t>(clips[0].size()), row = frames + 2;
  std::vector<float> x(batch * dim * row);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t d = 0; d < dim; ++d) std::copy_n(clips[b][d].begin(), frames, x.begin() + (b * dim + d) * row);
  std::vector<int64_t> found(levels * batch * frames, -1);
  if (encodec_search_batch(books, batch, x.data(), frames, dim * row, row, levels, threads, found.data())) fail("encodec_search_batch");
  for (int64_t k = 0; k < levels; ++k)
    for (int64_t b = 0; b < batch; ++b)
      if (!std::equal(&found[(k * batch + b) * frames], &found[(k * batch + b + 1) * frames], &codes[b][k * length_of(clips[b])]))
        fail("case " + std::to_string(number) + ": codes differ by batch");
}

uint64_t codebook_case(int64_t number) {
  Random random(number);
  const int64_t levels = random.between(1, 4), size = random.between(1, 170), dim = random.below(8) ? random.between(1, 40) : 300;
  const float unit = random.below(4) ? 1.0f : std::ldexp(1.0f, static_cast<int>(random.between(-70, 50)));
  std::vector<float> entries = random.floats(levels * size * dim, unit);
  for (int64_t n = 0; n + 1 < size; n += 3)  // ties
    std::memcpy(&entries[(n + 1) * dim], &entries[n * dim], 4 * dim);
  const int64_t alike = random.below(2) ? size : size / 2;  // and nearly so: the last entries of each level differ in one element
  for (int64_t n = 0; n < levels * size; ++n)
    if (n % size > alike) {
      std::memcpy(&entries[n * dim], &entries[(n - n % size) * dim], 4 * dim);
      entries[n * dim + n % dim] *= 1.0f + 0x1p-20f * static_cast<float>(random.below(16));
    }
  std::vector<Clip> clips(random.between(1, 3), Clip(dim));
  for (Clip& clip : clips) {
    const int64_t length = random.between(1, 300);
    for (std::vector<float>& channel : clip) channel = random.floats(length, 2.0f * unit);
    if (alike < size)
      for (int64_t d = 0; d < dim; ++d) clip[d].back() = entries[d];
    if (random.below(3) == 0) clip[0][0] = random.below(2) ? __builtin_nanf("") : 1e30f;
  }
  std::vector<int64_t> zeros(clips.size(), 0), lengths;
  for (const Clip& clip : clips) lengths.push_back(length_of(clip));
  const Clips x(clips, zeros, lengths);
  const encodec_clips in = x.record();
  std::vector<std::vector<int64_t>> first;
  uint64_t hash = 0;
  for (int64_t n = 0; const char* tier = encodec_tier(n); ++n) {
    encodec_codebooks* books = encodec_codebooks_new(tier, entries.data(), levels, size, dim);
    std::vector<std::vector<int64_t>> codes;
    std::vector<int64_t*> rows;
    for (int64_t length : lengths) codes.emplace_back(levels * length);
    for (std::vector<int64_t>& row : codes) rows.push_back(row.data());
    const auto batch = static_cast<int64_t>(clips.size());
    const auto threads = static_cast<int>(random.between(1, 8));
    for (int64_t b = 0; b < batch; ++b)
      if (encodec_search_batch(books, 1, in.data[b], lengths[b], 0, lengths[b], levels, threads, rows[b])) fail("encodec_search_batch");
    if (n == 0) first = codes;
    if (codes != first) fail("case " + std::to_string(number) + ": codes differ by tier on " + tier);
    check_search(books, clips, codes, levels, threads, number);
    const Clips sums(dim, lengths);
    const encodec_clips out = sums.record();
    if (encodec_lookup(books, rows.data(), lengths.data(), batch, levels, 2, &out)) fail("encodec_lookup");
    codes[0][0] = size;
    if (encodec_lookup(books, rows.data(), lengths.data(), batch, levels, 2, &out) != 1) fail("a code outside passed");
    std::vector<Clip> results(clips.size(), Clip(dim));
    sums.append_to(results);
    hash = digest(results);
    encodec_codebooks_free(books);
  }
  return hash;
}

uint64_t chunk_case(int64_t number) {
  Random random(number);
  const int64_t channels = random.between(1, 3), batch = random.between(1, 3), count = random.between(1, 5);
  const int64_t longest = random.below(3) ? random.between(1, 60) : random.between(2000, 5000);
  const int64_t stride = random.between((longest + 1) / 2, longest), last = random.between(1, longest);
  std::vector<int64_t> lengths(count * batch, longest);
  for (int64_t b = 0; b < batch; ++b) lengths[(count - 1) * batch + b] = last;
  std::vector<Clip> clips(lengths.size(), Clip(channels));
  for (size_t i = 0; i < clips.size(); ++i)
    for (std::vector<float>& channel : clips[i]) channel = random.floats(lengths[i], 1.0f);
  // the result is cut where the next to last chunk ends, or before
  const int64_t end = stride * (count - 1) + last;
  const std::vector<int64_t> totals(batch, random.below(2) ? end : random.between(stride * (count - 1) + 1, end));
  const std::vector<float> weight = random.floats(longest, 1.0f);
  const Clips x(clips, std::vector<int64_t>(clips.size(), 0), lengths);
  const encodec_clips in = x.record();
  std::vector<Clip> first;
  uint64_t hash = 0;
  for (int threads = 1; threads <= 3; ++threads) {
    const Clips clean(channels, lengths), joined(channels, totals);
    const encodec_clips unit = clean.record(), out = joined.record();
    std::vector<float> scales(clips.size());
    if (encodec_normalize(&in, static_cast<int64_t>(clips.size()), channels, threads, &unit, scales.data())) fail("encodec_normalize");
    if (encodec_overlap_add(&unit, count, batch, channels, weight.data(), stride, threads, &out)) fail("encodec_overlap_add");
    std::vector<Clip> results(batch, Clip(channels));
    joined.append_to(results);
    results.push_back({scales});
    if (threads == 1) first = results;
    require_same(results, first, number, "threads of chunks");
    hash = digest(results);
  }
  return hash;
}

uint64_t segment_case(int64_t number) {
  using namespace segments;
  Random random(number);
  const ModelRecipe recipe = random_model(random);
  const std::vector<Segment> all = random_segments(random, recipe);
  const std::string name = "case " + std::to_string(number) + ": ";
  std::vector<segments::Bytes> first;
  for (int64_t n = 0; const char* tier = encodec_tier(n); ++n) {
    encodec_lm* model = segments::build(recipe, tier);
    const std::vector<segments::Bytes> payloads = encoded(model, all, 1, 1, random);
    if (n == 0) first = payloads;
    if (payloads != first) fail(name + "payloads differ by tier on " + tier);
    const int threads = static_cast<int>(random.between(1, 5)), pieces = static_cast<int>(random.between(2, 5));
    if (encoded(model, all, threads, pieces, random) != first) fail(name + "payloads differ by threads or pieces on " + tier);
    const std::vector<Segment> found = decoded(model, all, payloads, threads, random.below(2) ? 1 : pieces, random, true);
    for (size_t b = 0; b < all.size(); ++b)
      if (found[b].codes != all[b].codes) fail(name + "codes differ after decoding on " + tier);
    std::vector<segments::Bytes> damaged = payloads;
    for (segments::Bytes& payload : damaged)
      if (!payload.empty()) payload[random.below(static_cast<int64_t>(payload.size()))] ^= 1 << random.below(8);
    for (const Segment& segment : decoded(model, all, damaged, threads, 1, random, false))
      for (int64_t code : segment.codes)
        if (code < 0 || code >= recipe.sizes.codebook_size) fail(name + "a damaged payload gives a code outside on " + tier);
    encodec_lm_free(model);
  }
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const segments::Bytes& payload : first)
    for (uint8_t byte : payload) hash = (hash ^ byte) * 0x100000001b3u;
  return hash;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return std::printf("usage: engine_fuzz FIRST_CASE CASES\n"), 2;
  const int64_t first = std::atoll(arguments[1]), cases = std::atoll(arguments[2]);
  std::fprintf(stderr, "tiers:");
  for (int64_t n = 0; const char* tier = encodec_tier(n); ++n) std::fprintf(stderr, " %s", tier);
  std::fprintf(stderr, "\n");
  trimmed_case();
  normed_case();
  for (int64_t number = first; number < first + cases; ++number)
    std::printf("%lld %016llx %016llx %016llx %016llx\n", static_cast<long long>(number),
                static_cast<unsigned long long>(network_case(number)),
                static_cast<unsigned long long>(codebook_case(number)),
                static_cast<unsigned long long>(chunk_case(number)),
                static_cast<unsigned long long>(segment_case(number)));
  return 0;
}
