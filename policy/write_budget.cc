#include "policy/write_budget.h"

#include <algorithm>

namespace kvd {
namespace {

constexpr uint64_t kDay = 86'400ull * kSecond;
constexpr uint64_t kMinutesOfDay = 1440;

}  // namespace

WriteBudget::WriteBudget(uint64_t bytes_per_day, Nanos now)
    : bytes_per_day_(bytes_per_day),
      burst_(std::max(bytes_per_day / kMinutesOfDay, kLeastBurst)),
      filled_at_(now),
      level_(static_cast<int64_t>(burst_)) {}

void WriteBudget::Fill(Nanos now) {
  if (now <= filled_at_) return;
  const auto elapsed = static_cast<uint64_t>(now - filled_at_);
  filled_at_ = now;
  const unsigned __int128 earned =
      static_cast<unsigned __int128>(elapsed) * bytes_per_day_ + remainder_;
  remainder_ = static_cast<uint64_t>(earned % kDay);
  const auto room = static_cast<uint64_t>(static_cast<int64_t>(burst_) - level_);
  const auto bytes = static_cast<uint64_t>(std::min<unsigned __int128>(earned / kDay, room));
  level_ += static_cast<int64_t>(bytes);
}

bool WriteBudget::Take(uint64_t bytes, Nanos now) {
  if (bytes_per_day_ > 0) {
    Fill(now);
    if (level_ <= 0) {
      refused_ += bytes;
      return false;
    }
    level_ -= static_cast<int64_t>(bytes);
  }
  taken_ += bytes;
  return true;
}

int64_t WriteBudget::available(Nanos now) {
  if (bytes_per_day_ == 0) return INT64_MAX;
  Fill(now);
  return level_;
}

}  // namespace kvd
