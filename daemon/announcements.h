// What engines announce their blocks by to routers (proto/types/announcement.h says what the bytes
// are): kept beside the index, one for a block at most, as long as the block is known.
//
// It is bounded in bytes, of all and of one domain. What finds no room is not kept: the block is
// stored all the same, and routers do not hear of it. Nothing here outlives the process.
//
// Threads: one, the control thread. What Find() gives may be kept by any thread, and counts in the
// bounds until the last has let go.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "proto/types/block.h"
#include "proto/types/shared_count.h"

namespace kvd {

// Constant; its bytes count where they were taken until it goes.
class KeptAnnouncement {
 public:
  using Account = std::shared_ptr<std::atomic<uint64_t>>;
  KeptAnnouncement(std::string_view bytes, Account all, Account of_domain);
  ~KeptAnnouncement();
  KeptAnnouncement(const KeptAnnouncement&) = delete;

  const std::string& bytes() const { return bytes_; }

 private:
  const std::string bytes_;
  const Account all_;
  const Account of_domain_;
};
using AnnouncementPtr = std::shared_ptr<const KeptAnnouncement>;

class Announcements {
 public:
  // Beside the bytes themselves, near enough: the table, the pointer's block and the string.
  static constexpr uint64_t kOverheadBytes = 160;

  // `max_bytes` of all, half of it of one domain; 0: nothing is kept.
  explicit Announcements(uint64_t max_bytes) : max_bytes_(max_bytes) {}

  // False: the block has one already, `bytes` is empty, or there is no room (which is counted).
  bool Keep(uint32_t block_ref, DomainId domain, std::string_view bytes);
  void Forget(uint32_t block_ref) {
    if (!by_block_.empty()) by_block_.erase(block_ref);
  }
  AnnouncementPtr Find(uint32_t block_ref) const {
    if (by_block_.empty()) return nullptr;
    const auto it = by_block_.find(block_ref);
    return it == by_block_.end() ? nullptr : it->second;
  }
  bool empty() const { return by_block_.empty(); }

  // Any thread.
  uint64_t bytes() const { return all_->load(std::memory_order_relaxed); }
  uint64_t refused() const { return refused_; }

 private:
  const uint64_t max_bytes_;
  const KeptAnnouncement::Account all_ = std::make_shared<std::atomic<uint64_t>>(0);
  std::map<DomainId, KeptAnnouncement::Account> of_domain_;
  absl::flat_hash_map<uint32_t, AnnouncementPtr> by_block_;
  SharedCount refused_;
};

}  // namespace kvd
