#include "proto/types/copy_loops_x86.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "proto/types/crc32c_math.h"

// Each function says which instructions it needs, so that the rest of the program stays baseline.
#define KVD_TARGET_SSE __attribute__((target("sse4.2,pclmul")))
#define KVD_TARGET_AVX512 __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq")))

namespace kvd::x86 {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kPage = 4096;
constexpr size_t kStreams = 4;

enum class Store { kNone, kOrdinary, kNonTemporal };

// What is left to do, and the state of what is done. Every loop below consumes as many whole steps
// of its own as there are and returns the rest; the last bytes are for AppendWords(). It travels by
// value: by reference, the compiler would reload it after each store of bytes.
struct Cursor {
  uint32_t state;
  std::byte* target;  // Not used with Store::kNone.
  const std::byte* source;
  size_t size;

  void Advance(size_t step) {
    target += step;
    source += step;
    size -= step;
  }
};

// ---- Word by word: heads, tails and small sizes ----

template <Store kStore>
KVD_TARGET_SSE Cursor AppendWords(Cursor at, size_t size) {
  uint64_t state = at.state;
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, at.source + i, 8);
    if constexpr (kStore != Store::kNone) std::memcpy(at.target + i, &word, 8);
    state = _mm_crc32_u64(state, word);
  }
  for (; i < size; ++i) {
    const std::byte byte = at.source[i];
    if constexpr (kStore != Store::kNone) at.target[i] = byte;
    state = _mm_crc32_u8(static_cast<uint32_t>(state), static_cast<uint8_t>(byte));
  }
  at.state = static_cast<uint32_t>(state);
  at.Advance(size);
  return at;
}

// ---- The CRC instruction, in four streams because each one takes three cycles ----

// The state after `bytes` more zero bytes is the carry-less product with this, times x^33: one x
// for the odd bit of a reflected product, x^32 for the CRC instruction that reduces it.
constexpr uint64_t ShiftBy(size_t bytes) { return crc32c::PowerOfX(8 * bytes - 33); }

KVD_TARGET_SSE inline uint64_t CarrylessMultiply(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(
      _mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<int64_t>(a)),
                                             _mm_cvtsi64_si128(static_cast<int64_t>(b)), 0x00)));
}

KVD_TARGET_SSE inline uint64_t AppendVector(uint64_t state, __m128i data) {
  state = _mm_crc32_u64(state, static_cast<uint64_t>(_mm_cvtsi128_si64(data)));
  return _mm_crc32_u64(state, static_cast<uint64_t>(_mm_extract_epi64(data, 1)));
}

// Moves four vectors that are kStride apart. All loads go before all stores: a load behind a store
// to the same offset in another page would wait, because the CPU compares the low 12 bits first.
template <Store kStore, size_t kStride>
KVD_TARGET_SSE inline void MoveFour(std::byte* target, const std::byte* source,
                                    __m128i (&data)[4]) {
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    data[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i * kStride));
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    auto* const to = reinterpret_cast<__m128i*>(target + i * kStride);
    if constexpr (kStore == Store::kOrdinary) _mm_storeu_si128(to, data[i]);
    if constexpr (kStore == Store::kNonTemporal) _mm_stream_si128(to, data[i]);
  }
}

// Streams that are a page apart find every hardware prefetcher at work; nearer ones are one stream
// to the memory and are prefetched by hand.
template <Store kStore, bool kSum, size_t kSegment>
KVD_TARGET_SSE Cursor CrcStreams(Cursor at) {
  constexpr size_t kGroup = kStreams * kSegment;
  constexpr uint64_t kShift3 = ShiftBy(3 * kSegment);
  constexpr uint64_t kShift2 = ShiftBy(2 * kSegment);
  constexpr uint64_t kShift1 = ShiftBy(kSegment);
  for (; at.size >= kGroup; at.Advance(kGroup)) {
    uint64_t state[kStreams] = {at.state, 0, 0, 0};
    for (size_t line = 0; line < kSegment; line += kLine) {
      for (size_t stream = 0; kSegment < kPage && stream < kStreams; ++stream) {
        _mm_prefetch(at.source + kGroup + stream * kSegment + line, _MM_HINT_T0);
      }
#pragma GCC unroll 4
      for (size_t i = line; i < line + kLine; i += 16) {
        __m128i data[kStreams];
        MoveFour<kStore, kSegment>(at.target + i, at.source + i, data);
#pragma GCC unroll 4
        for (size_t stream = 0; stream < kStreams; ++stream) {
          if constexpr (kSum) state[stream] = AppendVector(state[stream], data[stream]);
        }
      }
    }
    if constexpr (kSum) {
      const uint64_t before_last = CarrylessMultiply(state[0], kShift3) ^
                                   CarrylessMultiply(state[1], kShift2) ^
                                   CarrylessMultiply(state[2], kShift1);
      at.state = static_cast<uint32_t>(_mm_crc32_u64(0, before_last) ^ state[3]);
    }
  }
  return at;
}

template <Store kStore, bool kSum>
KVD_TARGET_SSE Cursor CrcOne(Cursor at) {
  return CrcStreams<kStore, kSum, 512>(at);
}

template <Store kStore, bool kSum>
KVD_TARGET_SSE Cursor CrcPages(Cursor at) {
  return CrcOne<kStore, kSum>(CrcStreams<kStore, kSum, kPage>(at));
}

// ---- Folding ----
//
// An accumulator is a polynomial of 128 bits (or four side by side), congruent to what was summed
// so far. To move it forward by `bits` its two halves are multiplied by powers of x modulo P, and
// the products, again of at most 128 bits, are added to the data that lies there. The end reduces
// the last 16 bytes with the CRC instruction. The exponents are one less than one expects because a
// reflected product is off by one bit.
struct FoldBy {
  uint64_t low;
  uint64_t high;
};
constexpr FoldBy FoldBits(size_t bits) {
  return {uint64_t{crc32c::PowerOfX(bits + 63)} << 32, uint64_t{crc32c::PowerOfX(bits - 1)} << 32};
}
constexpr FoldBy kFold128 = FoldBits(128);
constexpr FoldBy kFold256 = FoldBits(256);
constexpr FoldBy kFold384 = FoldBits(384);
constexpr FoldBy kFold512 = FoldBits(512);
constexpr FoldBy kFold2048 = FoldBits(2048);
constexpr FoldBy kFoldPages1 = FoldBits(8 * kPage);
constexpr FoldBy kFoldPages2 = FoldBits(8 * 2 * kPage);
constexpr FoldBy kFoldPages3 = FoldBits(8 * 3 * kPage);

// The accumulator that, moved forward by kBits, is the state of the bytes before the first: so the
// loops need not treat their first step in another way.
template <size_t kBits>
KVD_TARGET_SSE inline __m128i Before(uint32_t state) {
  constexpr uint64_t kBack = crc32c::PowerOfX(crc32c::kOrder - kBits - 33);
  return _mm_cvtsi64_si128(static_cast<int64_t>(_mm_crc32_u64(0, CarrylessMultiply(state, kBack))));
}

KVD_TARGET_SSE inline __m128i Broadcast128(FoldBy by) {
  return _mm_set_epi64x(static_cast<int64_t>(by.high), static_cast<int64_t>(by.low));
}

KVD_TARGET_SSE inline __m128i Fold(__m128i sum, __m128i by, __m128i data) {
  return _mm_xor_si128(
      _mm_xor_si128(_mm_clmulepi64_si128(sum, by, 0x00), _mm_clmulepi64_si128(sum, by, 0x11)),
      data);
}

KVD_TARGET_SSE inline uint32_t Reduce(__m128i sum) {
  return static_cast<uint32_t>(AppendVector(0, sum));
}

template <Store kStore, bool kSum, size_t kAhead>
KVD_TARGET_SSE Cursor Fold128One(Cursor at) {
  if (at.size < kLine) return at;
  const __m128i by = Broadcast128(kFold512);
  __m128i sum[4] = {Before<512>(at.state)};
  for (; at.size >= kLine; at.Advance(kLine)) {
    _mm_prefetch(at.source + kAhead, _MM_HINT_T0);
    __m128i data[4];
    MoveFour<kStore, 16>(at.target, at.source, data);
#pragma GCC unroll 4
    for (size_t i = 0; kSum && i < 4; ++i) sum[i] = Fold(sum[i], by, data[i]);
  }
  if constexpr (kSum) {
    const __m128i next = Broadcast128(kFold128);
    at.state = Reduce(Fold(Fold(Fold(sum[0], next, sum[1]), next, sum[2]), next, sum[3]));
  }
  return at;
}

template <Store kStore, bool kSum>
KVD_TARGET_SSE Cursor Fold128Pages(Cursor at) {
  constexpr size_t kGroup = kStreams * kPage;
  if (at.size >= kGroup) {
    const __m128i by = Broadcast128(kFold128);
    __m128i sum[kStreams] = {Before<128>(at.state)};
    for (; at.size >= kGroup; at.Advance(kGroup)) {
      for (size_t line = 0; line < kPage; line += kLine) {
#pragma GCC unroll 4
        for (size_t i = line; i < line + kLine; i += 16) {
          __m128i data[kStreams];
          MoveFour<kStore, kPage>(at.target + i, at.source + i, data);
#pragma GCC unroll 4
          for (size_t page = 0; kSum && page < kStreams; ++page) {
            sum[page] = Fold(sum[page], by, data[page]);
          }
        }
      }
      if constexpr (kSum) {  // The join is where the next group's first page goes on.
        sum[0] = Fold(sum[0], Broadcast128(kFoldPages3), sum[3]);
        sum[0] = Fold(sum[1], Broadcast128(kFoldPages2), sum[0]);
        sum[0] = Fold(sum[2], Broadcast128(kFoldPages1), sum[0]);
        sum[1] = sum[2] = sum[3] = _mm_setzero_si128();
      }
    }
    if constexpr (kSum) at.state = Reduce(sum[0]);
  }
  return Fold128One<kStore, kSum, 512>(at);
}

KVD_TARGET_AVX512 inline __m512i Broadcast512(FoldBy by) {
  const auto low = static_cast<int64_t>(by.low);
  const auto high = static_cast<int64_t>(by.high);
  return _mm512_set_epi64(high, low, high, low, high, low, high, low);
}

KVD_TARGET_AVX512 inline __m512i Fold(__m512i sum, __m512i by, __m512i data) {
  constexpr int kXorOfThree = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, by, 0x00),
                                   _mm512_clmulepi64_epi128(sum, by, 0x11), data, kXorOfThree);
}

KVD_TARGET_AVX512 inline uint32_t Reduce(__m512i sum) {
  alignas(64) __m128i lane[4];  // By memory: g++ 12 warns about its own extraction of a lane.
  _mm512_store_si512(lane, sum);
  __m128i last = Fold(lane[0], Broadcast128(kFold384), lane[3]);
  last = Fold(lane[1], Broadcast128(kFold256), last);
  last = Fold(lane[2], Broadcast128(kFold128), last);
  return Reduce(last);
}

template <Store kStore, size_t kStride>
KVD_TARGET_AVX512 inline void MoveFour(std::byte* target, const std::byte* source,
                                       __m512i (&data)[4]) {
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) data[i] = _mm512_loadu_si512(source + i * kStride);
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    auto* const to = reinterpret_cast<__m512i*>(target + i * kStride);
    if constexpr (kStore == Store::kOrdinary) _mm512_storeu_si512(to, data[i]);
    if constexpr (kStore == Store::kNonTemporal) _mm512_stream_si512(to, data[i]);
  }
}

template <Store kStore, bool kSum, size_t kAhead>
KVD_TARGET_AVX512 Cursor Fold512One(Cursor at) {
  constexpr size_t kStep = 4 * kLine;
  if (at.size < kStep) return at;
  const __m512i by = Broadcast512(kFold2048);
  __m512i sum[4] = {_mm512_zextsi128_si512(Before<2048>(at.state))};
  for (; at.size >= kStep; at.Advance(kStep)) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) _mm_prefetch(at.source + i * kLine + kAhead, _MM_HINT_T0);
    __m512i data[4];
    MoveFour<kStore, kLine>(at.target, at.source, data);
#pragma GCC unroll 4
    for (size_t i = 0; kSum && i < 4; ++i) sum[i] = Fold(sum[i], by, data[i]);
  }
  if constexpr (kSum) {
    const __m512i next = Broadcast512(kFold512);
    at.state = Reduce(Fold(Fold(Fold(sum[0], next, sum[1]), next, sum[2]), next, sum[3]));
  }
  return at;
}

template <Store kStore, bool kSum, size_t kAhead>
KVD_TARGET_AVX512 Cursor Fold512Pages(Cursor at) {
  constexpr size_t kGroup = kStreams * kPage;
  if (at.size >= kGroup) {
    const __m512i by = Broadcast512(kFold512);
    __m512i sum[kStreams] = {_mm512_zextsi128_si512(Before<512>(at.state))};
    for (; at.size >= kGroup; at.Advance(kGroup)) {
      for (size_t line = 0; line < kPage; line += kLine) {
        // Past the end of a page its stream goes on in the next group.
        const size_t ahead = line + kAhead + (line + kAhead < kPage ? 0 : kGroup - kPage);
#pragma GCC unroll 4
        for (size_t page = 0; kAhead != 0 && page < kStreams; ++page) {
          _mm_prefetch(at.source + page * kPage + ahead, _MM_HINT_T0);
        }
        __m512i data[kStreams];
        MoveFour<kStore, kPage>(at.target + line, at.source + line, data);
#pragma GCC unroll 4
        for (size_t page = 0; kSum && page < kStreams; ++page) {
          sum[page] = Fold(sum[page], by, data[page]);
        }
      }
      if constexpr (kSum) {  // The join is where the next group's first page goes on.
        sum[0] = Fold(sum[0], Broadcast512(kFoldPages3), sum[3]);
        sum[0] = Fold(sum[1], Broadcast512(kFoldPages2), sum[0]);
        sum[0] = Fold(sum[2], Broadcast512(kFoldPages1), sum[0]);
        sum[1] = sum[2] = sum[3] = _mm512_setzero_si512();
      }
    }
    if constexpr (kSum) at.state = Reduce(sum[0]);
  }
  return Fold512One<kStore, kSum, 512>(at);
}

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
  std::memcpy(at.target, at.source, at.size);
  if constexpr (kStore == Store::kNonTemporal) _mm_sfence();
}

template <Cursor (*kBulk)(Cursor)>
KVD_TARGET_SSE uint32_t Sum(uint32_t crc, const std::byte* source, size_t size) {
  Cursor at{~crc, nullptr, source, size};
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
  std::memcpy(target, source, size);
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
  add("nt1-fold128", kMemory, CopySum<kNt, Fold128One<kNt, true, 512>>,
      Copy<kNt, Fold128One<kNt, false, 512>>);
  add("nt4-fold128", kMemory, CopySum<kNt, Fold128Pages<kNt, true>>,
      Copy<kNt, Fold128Pages<kNt, false>>);
  add("nt1-crc32", kMemory, CopySum<kNt, CrcOne<kNt, true>>, Copy<kNt, CrcOne<kNt, false>>);
  add("nt4-crc32", kMemory, CopySum<kNt, CrcPages<kNt, true>>, Copy<kNt, CrcPages<kNt, false>>);
  add("st1-fold128", kCache, CopySum<kSt, Fold128One<kSt, true, 512>>,
      Copy<kSt, Fold128One<kSt, false, 512>>);
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
