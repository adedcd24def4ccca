// What was found damaged, lately: a bounded list that operators read. The bytes themselves are gone
// from the index by then; their room comes back when nobody reads it any more.
//
// Threads: one, the control thread.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string_view>

#include "proto/types/block.h"
#include "proto/types/clock.h"

namespace kvd {

// Who found it.
enum class FoundBy : uint8_t {
  kClient,    // A reader's report, confirmed.
  kRead,      // A read from NVMe for a reader.
  kReclaim,   // A segment that was copied forward.
  kScrubber,  // The background walk, or an operator's.
};
inline constexpr size_t kFinders = 4;
inline constexpr std::array<std::string_view, kFinders> kFinderNames = {"client", "read", "reclaim",
                                                                        "scrubber"};
inline std::string_view FinderName(FoundBy found_by) {
  return kFinderNames[static_cast<size_t>(found_by)];
}

struct Quarantined {
  uint64_t number = 0;  // From 1, in order.
  Nanos time = 0;       // Of the control thread's clock.
  DomainId domain = 0;
  NamespaceId ns = 0;
  ChainHash key;
  uint32_t depth = 0;  // 1 for a root.
  PartId id;
  bool on_nvme = false;
  uint32_t region = 0;  // As clients know it; or segment.
  uint64_t offset = 0;  // Bytes from its start.
  uint32_t length = 0;
  uint32_t sum = 0;  // That it should have had.
  FoundBy found_by = FoundBy::kClient;
};

class QuarantineList {
 public:
  static constexpr size_t kMost = 1024;

  // Gives it its number. Returns what was added.
  const Quarantined& Add(Quarantined entry) {
    entry.number = ++total_;
    if (entries_.size() == kMost) entries_.pop_front();
    entries_.push_back(entry);
    return entries_.back();
  }
  const std::deque<Quarantined>& entries() const { return entries_; }  // Oldest first.
  uint64_t total() const { return total_; }                            // Since start.

 private:
  std::deque<Quarantined> entries_;
  uint64_t total_ = 0;
};

}  // namespace kvd
