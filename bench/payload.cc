#include "bench/payload.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "proto/types/check.h"

namespace kvd {
namespace {

static_assert(std::endian::native == std::endian::little, "words are stored as they are");

constexpr size_t kWordBytes = sizeof(uint64_t);
constexpr uint64_t kStep =
    0x9e3779b97f4a7c15;  // Odd, so the counter repeats after 2^64 words only.

// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
// OOPSLA '14). One to one.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// From counter to word. One to one, and of adds, shifts and xors only: SSE2 and AVX2 cannot
// multiply 64-bit lanes.
[[gnu::always_inline]] inline uint64_t Word(uint64_t x) {
  x ^= x >> 32;
  x += x << 21;
  x ^= x >> 29;
  x += x << 5;
  return x ^ (x >> 17);
}

[[gnu::always_inline]] inline void FillWords(uint64_t counter, std::byte* target, size_t words) {
  for (size_t i = 0; i < words; ++i) {
    const uint64_t word = Word(counter);
    counter += kStep;
    std::memcpy(target + i * kWordBytes, &word, kWordBytes);
  }
}

[[gnu::always_inline]] inline bool CheckWords(uint64_t counter, const std::byte* bytes,
                                              size_t words) {
  uint64_t difference = 0;
  for (size_t i = 0; i < words; ++i) {
    uint64_t word;
    std::memcpy(&word, bytes + i * kWordBytes, kWordBytes);
    difference |= word ^ Word(counter);
    counter += kStep;
  }
  return difference == 0;
}

void FillBaseline(uint64_t first, std::byte* target, size_t words) {
  FillWords(first, target, words);
}
bool CheckBaseline(uint64_t first, const std::byte* bytes, size_t words) {
  return CheckWords(first, bytes, words);
}

#if defined(__x86_64__)
#if defined(__clang__)  // It does not know the preference, and takes narrower vectors.
#define KVD_WIDEST "avx512f"
#else
#define KVD_WIDEST "avx512f,prefer-vector-width=512"
#endif
[[gnu::target("avx2")]] void FillAvx2(uint64_t first, std::byte* target, size_t words) {
  FillWords(first, target, words);
}
[[gnu::target("avx2")]] bool CheckAvx2(uint64_t first, const std::byte* bytes, size_t words) {
  return CheckWords(first, bytes, words);
}
[[gnu::target(KVD_WIDEST)]] void FillAvx512(uint64_t first, std::byte* target, size_t words) {
  FillWords(first, target, words);
}
[[gnu::target(KVD_WIDEST)]] bool CheckAvx512(uint64_t first, const std::byte* bytes, size_t words) {
  return CheckWords(first, bytes, words);
}
#endif

std::vector<PayloadLoop> FindLoops() {
  std::vector<PayloadLoop> loops = {{"baseline", &FillBaseline, &CheckBaseline}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) loops.push_back({"avx2", &FillAvx2, &CheckAvx2});
  if (__builtin_cpu_supports("avx512f")) loops.push_back({"avx512", &FillAvx512, &CheckAvx512});
#endif
  return loops;
}

// The counter of the part's word at byte `offset`.
uint64_t Counter(absl::Span<const std::byte> key, uint32_t group, uint32_t shard, uint64_t offset) {
  KVD_CHECK(offset % kWordBytes == 0) << "offset " << offset;
  uint64_t base = Mix((static_cast<uint64_t>(group) << 32 | shard) + kStep);
  base = Mix(base ^ key.size()) + kStep;
  for (size_t i = 0; i < key.size(); i += kWordBytes) {
    uint64_t word = 0;
    std::memcpy(&word, key.data() + i, std::min(kWordBytes, key.size() - i));
    base = Mix(base ^ word) + kStep;
  }
  return base + offset / kWordBytes * kStep;
}

}  // namespace

absl::Span<const PayloadLoop> PayloadLoops() {
  static const auto& loops = *new std::vector<PayloadLoop>(FindLoops());
  return loops;
}

void FillPayload(absl::Span<const std::byte> key, uint32_t group, uint32_t shard,
                 absl::Span<std::byte> target, uint64_t offset) {
  const uint64_t counter = Counter(key, group, shard, offset);
  const size_t words = target.size() / kWordBytes;
  PayloadLoops().back().fill(counter, target.data(), words);
  const uint64_t last = Word(counter + words * kStep);
  if (target.size() % kWordBytes != 0) {
    std::memcpy(target.data() + words * kWordBytes, &last, target.size() % kWordBytes);
  }
}

size_t CheckPayload(absl::Span<const std::byte> key, uint32_t group, uint32_t shard,
                    absl::Span<const std::byte> bytes, uint64_t offset) {
  const uint64_t counter = Counter(key, group, shard, offset);
  const size_t words = bytes.size() / kWordBytes;
  const uint64_t last = Word(counter + words * kStep);
  const size_t rest = bytes.size() % kWordBytes;
  const std::byte* tail = bytes.data() + words * kWordBytes;
  if (PayloadLoops().back().check(counter, bytes.data(), words) &&
      (rest == 0 || std::memcmp(tail, &last, rest) == 0)) {
    return kPayloadMatches;
  }

  for (size_t i = 0; i < bytes.size(); ++i) {  // Rare: something is wrong, so find where.
    const uint64_t word = Word(counter + i / kWordBytes * kStep);
    if (bytes[i] != static_cast<std::byte>(word >> (8 * (i % kWordBytes)))) return i;
  }
  return kPayloadMatches;  // The bytes changed under us and are right now.
}

std::array<std::byte, 32> KeyOf(uint64_t hash_id, uint64_t seed) {
  const uint64_t base = Mix(seed + kStep);
  uint64_t words[4];
  words[0] = Mix(hash_id ^ base);  // One to one in hash_id: keys differ here already.
  for (int i = 1; i < 4; ++i) words[i] = Mix(words[i - 1] ^ Mix(base + i * kStep));
  std::array<std::byte, 32> key;
  std::memcpy(key.data(), words, sizeof(words));
  return key;
}

}  // namespace kvd
