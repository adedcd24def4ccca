#include "daemon/announcements.h"

namespace kvd {

KeptAnnouncement::KeptAnnouncement(std::string_view bytes, Account all, Account of_domain)
    : bytes_(bytes), all_(std::move(all)), of_domain_(std::move(of_domain)) {
  const uint64_t size = bytes_.size() + Announcements::kOverheadBytes;
  all_->fetch_add(size, std::memory_order_relaxed);
  of_domain_->fetch_add(size, std::memory_order_relaxed);
}

KeptAnnouncement::~KeptAnnouncement() {
  const uint64_t size = bytes_.size() + Announcements::kOverheadBytes;
  all_->fetch_sub(size, std::memory_order_relaxed);
  of_domain_->fetch_sub(size, std::memory_order_relaxed);
}

bool Announcements::Keep(uint32_t block_ref, DomainId domain, std::string_view bytes) {
  if (bytes.empty() || by_block_.contains(block_ref)) return false;
  KeptAnnouncement::Account& of_domain = of_domain_[domain];
  if (of_domain == nullptr) of_domain = std::make_shared<std::atomic<uint64_t>>(0);
  const uint64_t size = bytes.size() + kOverheadBytes;
  if (all_->load(std::memory_order_relaxed) + size > max_bytes_ ||
      of_domain->load(std::memory_order_relaxed) + size > max_bytes_ / 2) {
    ++refused_;
    return false;
  }
  by_block_[block_ref] = std::make_shared<const KeptAnnouncement>(bytes, all_, of_domain);
  return true;
}

}  // namespace kvd
