#include "proto/types/copy_loops_x86.h"

#if defined(__x86_64__)

#include <cstring>

#include "proto/types/copy_kernels_avx512.h"
#include "proto/types/copy_kernels_sse.h"

namespace kvd::x86 {
namespace {

// ---- From a loop over whole, aligned steps to any alignment and length ----

constexpr size_t kSmall = 512;  // Below, to find the alignment costs more than it gives.

size_t ToLine(const std::byte* address) {
  return -reinterpret_cast<uintptr_t>(address) & (kLine - 1);
}

template <Store kStore, Cursor (*kBulk)(Cursor)>
KVD_TARGET_SSE uint32_t CopySum(std::byte* target, const std::byte* source, size_t size) {
  Cursor at{~uint32_t{0}, target, source, size};
  if (size >= kSmall) {
    at = AppendWords<Store::kOrdinary>(at, ToLine(target));
    at = kBulk(at);
  }
  at = AppendWords<Store::kOrdinary>(at, at.size);
  if constexpr (kStore == Store::kNonTemporal) _mm_sfence();
  return ~at.state;
}

template <Store kStore, Cursor (*kBulk)(Cursor)>
void Copy(std::byte* target, const std::byte* source, size_t size) {
  Cursor at{0, target, source, size};
  if (size >= kSmall) {
    const size_t head = ToLine(target);
    std::memcpy(at.target, at.source, head);
    at.Advance(head);
    at = kBulk(at);
  }
  if (at.size != 0) std::memcpy(at.target, at.source, at.size);
  if constexpr (kStore == Store::kNonTemporal) _mm_sfence();
}

template <Cursor (*kBulk)(Cursor)>
KVD_TARGET_SSE uint32_t Sum(uint32_t crc, const std::byte* source, size_t size) {
  Cursor at{~crc, const_cast<std::byte*>(source), source, size};  // Never written.
  if (size >= kSmall) {
    at = AppendWords<Store::kNone>(at, ToLine(source));
    at = kBulk(at);
  }
  at = AppendWords<Store::kNone>(at, at.size);
  return ~at.state;
}

KVD_TARGET_SSE uint32_t PlainCopySum(std::byte* target, const std::byte* source, size_t size) {
  Cursor at{~uint32_t{0}, target, source, size};
  at = AppendWords<Store::kOrdinary>(at, size);
  return ~at.state;
}

void PlainCopy(std::byte* target, const std::byte* source, size_t size) {
  if (size != 0) std::memcpy(target, source, size);  // An empty span may be null.
}

constexpr Store kNt = Store::kNonTemporal;
constexpr Store kSt = Store::kOrdinary;
constexpr Store kNo = Store::kNone;
constexpr CopyUse kMemory = CopyUse::kMemory;
constexpr CopyUse kCache = CopyUse::kCache;

}  // namespace

void AppendLoops(std::vector<CopyLoop>& copies, std::vector<SumLoop>& sums) {
  const auto add = [&copies](std::string_view name, CopyUse use, auto copy_sum, auto copy) {
    copies.push_back({name, use, copy_sum, copy});
  };
  if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul")) return;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq")) {
    add("nt1-fold", kMemory, CopySum<kNt, Fold512One<kNt, true, 512>>,
        Copy<kNt, Fold512One<kNt, false, 512>>);
    add("nt1-fold-4k", kMemory, CopySum<kNt, Fold512One<kNt, true, 4096>>,
        Copy<kNt, Fold512One<kNt, false, 4096>>);
    add("nt4-fold", kMemory, CopySum<kNt, Fold512Pages<kNt, true, 0>>,
        Copy<kNt, Fold512Pages<kNt, false, 0>>);
    add("nt4-fold-512", kMemory, CopySum<kNt, Fold512Pages<kNt, true, 512>>,
        Copy<kNt, Fold512Pages<kNt, false, 512>>);
    add("st1-fold", kCache, CopySum<kSt, Fold512One<kSt, true, 512>>,
        Copy<kSt, Fold512One<kSt, false, 512>>);
    sums.push_back({"sum1-fold", Sum<Fold512One<kNo, true, 1024>>});
    sums.push_back({"sum4-fold", Sum<Fold512Pages<kNo, true, 512>>});
  }
  add("nt1-fold128", kMemory, CopySum<kNt, Fold128One<kNt, true, 2048>>,
      Copy<kNt, Fold128One<kNt, false, 2048>>);
  add("nt4-fold128", kMemory, CopySum<kNt, Fold128Pages<kNt, true>>,
      Copy<kNt, Fold128Pages<kNt, false>>);
  add("nt1-crc32", kMemory, CopySum<kNt, CrcOne<kNt, true>>, Copy<kNt, CrcOne<kNt, false>>);
  add("nt4-crc32", kMemory, CopySum<kNt, CrcPages<kNt, true>>, Copy<kNt, CrcPages<kNt, false>>);
  add("st1-fold128", kCache, CopySum<kSt, Fold128One<kSt, true, 2048>>,
      Copy<kSt, Fold128One<kSt, false, 2048>>);
  add("st1-crc32", kCache, CopySum<kSt, CrcOne<kSt, true>>, Copy<kSt, CrcOne<kSt, false>>);
  sums.push_back({"sum1-crc32", Sum<CrcOne<kNo, true>>});
  sums.push_back({"sum1-fold128", Sum<Fold128One<kNo, true, 1024>>});
  add("plain", kMemory, PlainCopySum, PlainCopy);
  add("plain", kCache, PlainCopySum, PlainCopy);
}

}  // namespace kvd::x86

#else

namespace kvd::x86 {
void AppendLoops(std::vector<CopyLoop>&, std::vector<SumLoop>&) {}
}  // namespace kvd::x86

#endif
