// How much a randomized test does, and from which seed: named once, so that a failure can be
// replayed and a long run asked for from outside.

#pragma once

#include <cstdint>
#include <cstdlib>

namespace kvd {

// The environment variable `name` as a number, or `otherwise`.
inline uint64_t NumberFromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

// `release` rounds, or a part of them where a sanitizer makes each many times slower.
inline uint64_t RoundsForThisBuild(uint64_t release) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return release / 40 + 1;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  return release / 40 + 1;
#endif
#endif
  return release;
}

}  // namespace kvd
