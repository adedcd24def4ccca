// The switches of proto/types/safety.h, in programs that are built to have them.

#include <cstdlib>
#include <cstring>
#include <iterator>

#include "proto/types/safety.h"

namespace kvd {

bool SafetyOn(Safety safety) {
  static constexpr const char* kNames[] = {
      "checksum",      "data_before_index", "no_reuse_under_hold",
      "key_in_header", "quarantine",        "ancestors",
      "epoch"};
  static const char* const off = std::getenv("KVD_CONTROL");
  const auto i = static_cast<size_t>(safety);
  return off == nullptr || i >= std::size(kNames) || std::strcmp(off, kNames[i]) != 0;
}

}  // namespace kvd
