#include "proto/types/copy_loops.h"

#include <cstring>
#include <vector>

#include "proto/types/copy_loops_x86.h"
#include "proto/types/crc32c_math.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace kvd {
namespace {

// The loops that any CPU can run, summing a word at a time by tables or by what kAppendWord is.
template <uint32_t (*kAppendWord)(uint32_t state, uint64_t word)>
uint32_t PlainSum(uint32_t crc, const std::byte* source, size_t size) {
  uint32_t state = ~crc;
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, source + i, 8);
    state = kAppendWord(state, word);
  }
  for (; i < size; ++i) state = crc32c::AppendByte(state, static_cast<uint8_t>(source[i]));
  return ~state;
}

template <uint32_t (*kAppendWord)(uint32_t state, uint64_t word)>
uint32_t PlainCopySum(std::byte* target, const std::byte* source, size_t size) {
  uint32_t state = ~uint32_t{0};
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, source + i, 8);
    std::memcpy(target + i, &word, 8);
    state = kAppendWord(state, word);
  }
  for (; i < size; ++i) {
    const std::byte byte = source[i];
    target[i] = byte;
    state = crc32c::AppendByte(state, static_cast<uint8_t>(byte));
  }
  return ~state;
}

void PlainCopy(std::byte* target, const std::byte* source, size_t size) {
  if (size != 0) std::memcpy(target, source, size);  // An empty span may be null.
}

template <uint32_t (*kAppendWord)(uint32_t state, uint64_t word)>
void AppendPlain(std::vector<CopyLoop>& copies, std::vector<SumLoop>& sums) {
  copies.push_back({"plain", CopyUse::kMemory, PlainCopySum<kAppendWord>, PlainCopy});
  copies.push_back({"plain", CopyUse::kCache, PlainCopySum<kAppendWord>, PlainCopy});
  sums.push_back({"plain", PlainSum<kAppendWord>});
}

#if defined(__aarch64__) && defined(__linux__)
// By assembly, because each compiler has another name and another condition for the intrinsic.
inline uint32_t AppendWordArm(uint32_t state, uint64_t word) {
  asm(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(state) : "r"(word));
  return state;
}
#endif

struct Loops {
  std::vector<CopyLoop> copies;
  std::vector<SumLoop> sums;
};

Loops MakeLoops() {
  Loops loops;
  x86::AppendLoops(loops.copies, loops.sums);
  if (!loops.copies.empty()) return loops;
#if defined(__aarch64__) && defined(__linux__)
  if ((getauxval(AT_HWCAP) & HWCAP_CRC32) != 0) {
    AppendPlain<AppendWordArm>(loops.copies, loops.sums);
    return loops;
  }
#endif
  AppendPlain<crc32c::AppendWord>(loops.copies, loops.sums);
  return loops;
}

// What the CPU can do does not change, so neither does this.
const Loops& TheLoops() {
  static const Loops* const loops = new Loops(MakeLoops());
  return *loops;
}

}  // namespace

absl::Span<const CopyLoop> CopyLoops() { return TheLoops().copies; }
absl::Span<const SumLoop> SumLoops() { return TheLoops().sums; }

void DropFromCaches([[maybe_unused]] absl::Span<const std::byte> bytes) {
#if defined(__x86_64__)
  for (size_t i = 0; i < bytes.size(); i += 64) _mm_clflush(bytes.data() + i);
  if (!bytes.empty()) _mm_clflush(bytes.data() + bytes.size() - 1);
  _mm_mfence();
#endif
}

}  // namespace kvd
