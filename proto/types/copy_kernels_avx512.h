// The loops over whole steps that need AVX-512 and VPCLMULQDQ: folding of 512 bits, for CPUs that
// multiply four pairs at once. Like copy_kernels_sse.h, on which it builds, for copy_loops_x86.cc.

#pragma once

#if defined(__x86_64__)

#include "proto/types/copy_kernels_sse.h"

#define KVD_TARGET_AVX512 __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq")))

namespace kvd::x86 {

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
  // Who stores past the caches does not want the source in them either. Where tried, the speed is
  // the same within the noise.
  constexpr auto kHint = kStore == Store::kNonTemporal ? _MM_HINT_NTA : _MM_HINT_T0;
  if (at.size < kStep) return at;
  const __m512i by = Broadcast512(kFold2048);
  __m512i sum[4] = {_mm512_zextsi128_si512(Before<2048>(at.state))};
  for (; at.size >= kStep; at.Advance(kStep)) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) _mm_prefetch(at.source + i * kLine + kAhead, kHint);
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

}  // namespace kvd::x86

#endif
