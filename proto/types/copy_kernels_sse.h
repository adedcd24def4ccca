// The loops over whole steps that need SSE4.2 and PCLMUL: the CRC instruction in four streams, and
// folding of 128 bits. Only copy_loops_x86.cc and copy_kernels_avx512.h need this header; it says
// nothing on another architecture.
//
// A kernel is a template over how it stores, whether it sums, and its distances; each function says
// by attribute which instructions it needs, so that the rest of the program stays baseline.

#pragma once

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "proto/types/crc32c_math.h"

#define KVD_TARGET_SSE __attribute__((target("sse4.2,pclmul")))

namespace kvd::x86 {

inline constexpr size_t kLine = 64;
inline constexpr size_t kPage = 4096;
inline constexpr size_t kStreams = 4;

enum class Store { kNone, kOrdinary, kNonTemporal };

// What is left to do, and the state of what is done. Every loop below consumes as many whole steps
// of its own as there are and returns the rest; the last bytes are for AppendWords(). It travels by
// value: by reference, the compiler would reload it after each store of bytes.
struct Cursor {
  uint32_t state;
  std::byte* target;  // With Store::kNone it moves along but is never written.
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
inline constexpr FoldBy kFold128 = FoldBits(128);
inline constexpr FoldBy kFold256 = FoldBits(256);
inline constexpr FoldBy kFold384 = FoldBits(384);
inline constexpr FoldBy kFold512 = FoldBits(512);
inline constexpr FoldBy kFold2048 = FoldBits(2048);
inline constexpr FoldBy kFoldPages1 = FoldBits(8 * kPage);
inline constexpr FoldBy kFoldPages2 = FoldBits(8 * 2 * kPage);
inline constexpr FoldBy kFoldPages3 = FoldBits(8 * 3 * kPage);

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

}  // namespace kvd::x86

#endif
