#include "client/own_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/staging.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

// A copier sends an answer for each piece, which takes it longer than this side to look again.
constexpr absl::Duration kLookOn = absl::Microseconds(300);

// Whether `memory` is a shared mapping of the first bytes of this file: the caller's word for it
// is not enough, since a slip would store the bytes of one block for those of another.
absl::Status CheckMapped(const struct stat& file, absl::Span<const std::byte> memory) {
  std::ifstream maps("/proc/self/maps");
  if (!maps) return absl::FailedPreconditionError("memory: /proc/self/maps cannot be read");
  const auto begin = reinterpret_cast<uintptr_t>(memory.data());
  uintptr_t at = begin;
  for (std::string line; at - begin < memory.size() && std::getline(maps, line);) {
    uintptr_t start = 0;
    uintptr_t end = 0;
    uint64_t offset = 0;
    uint64_t inode = 0;
    unsigned major_number = 0;
    unsigned minor_number = 0;
    char rights[5] = "";
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %4s %" SCNx64 " %x:%x %" SCNu64,
                    &start, &end, rights, &offset, &major_number, &minor_number, &inode) != 7) {
      continue;
    }
    if (end <= at) continue;
    if (start > at || rights[3] != 's' || inode != file.st_ino ||
        makedev(major_number, minor_number) != file.st_dev || offset + (at - start) != at - begin) {
      break;
    }
    at = end;
  }
  if (at - begin >= memory.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("memory: its ", memory.size(),
                                                 " bytes are not where the first bytes of the "
                                                 "memfd are mapped with MAP_SHARED (from byte ",
                                                 at - begin, " on)"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const OwnMemory>> OwnMemory::Open(
    int fd, absl::Span<const std::byte> memory) {
  const uint64_t size = memory.size();
  if (size == 0 || size > kMaxOwnStagingBytes) {
    return absl::InvalidArgumentError(absl::StrCat("memory: must be 1 byte to 1 TiB, got ", size));
  }
  struct stat file;
  struct statfs system;
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || fstat(fd, &file) != 0 || fstatfs(fd, &system) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("fd: ", fd, " is no memfd that can be sealed"));
  }
  if ((seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError(
        "fd: must be sealed against shrinking (F_SEAL_SHRINK): the daemon reads from it");
  }
  if (static_cast<uint64_t>(file.st_size) < size) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory: ", size, " bytes, and the memfd has ", file.st_size));
  }
  if (system.f_type == HUGETLBFS_MAGIC) {
    if ((seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0) {
      return absl::InvalidArgumentError(
          "fd: huge pages must be sealed against new writable mappings too (F_SEAL_FUTURE_WRITE)");
    }
    if (size % static_cast<uint64_t>(file.st_blksize) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("memory: must be whole huge pages of ", file.st_blksize, " bytes"));
    }
  }
  if (absl::Status status = CheckMapped(file, memory); !status.ok()) return status;
  UniqueFd ours(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (ours.get() < 0)
    return absl::ResourceExhaustedError("fd: this process has no descriptor left");
  return std::shared_ptr<const OwnMemory>(new OwnMemory(std::move(ours), memory));
}

std::optional<uint64_t> OwnMemory::OffsetOf(absl::Span<const std::byte> bytes) const {
  const auto start = reinterpret_cast<uintptr_t>(memory_.data());
  const auto at = reinterpret_cast<uintptr_t>(bytes.data());
  if (at < start || at - start > memory_.size() || bytes.size() > memory_.size() - (at - start)) {
    return std::nullopt;
  }
  return at - start;
}

absl::Status OwnFills::Store(uint64_t reservation_id, absl::Span<const Part> parts,
                             absl::Time deadline) {
  const TurnLock lock(turn_, deadline);
  if (!lock.held()) return absl::DeadlineExceededError("put: others are putting");
  std::vector<FillRequest> pending;
  for (const Part& part : parts) {
    for (uint64_t done = 0; done < part.bytes; done += kPieceBytes) {
      pending.push_back(
          {.reservation_id = reservation_id,
           .staging_offset = part.offset + done,
           .index = part.index,
           .length = static_cast<uint32_t>(std::min<uint64_t>(kPieceBytes, part.bytes - done)),
           .part_offset = static_cast<uint32_t>(done)});
    }
  }
  absl::Span<const FillRequest> left = pending;
  while (!left.empty() || !in_flight_.empty()) {
    // A message goes to the copier in one turn of it, so it is no longer than a piece.
    size_t some = 0;
    for (uint64_t bytes = 0; some < std::min<size_t>(left.size(), kMaxFillsPerMessage); ++some) {
      bytes += left[some].length;
      if (some > 0 && bytes > kPieceBytes) break;
    }
    const bool fits = some > 0 && in_flight_.size() + some <= kMaxFillsInFlight;
    absl::Status status =
        fits ? Send(left.first(some), deadline) : Receive(reservation_id, deadline);
    if (!status.ok()) return status;
    if (fits) left.remove_prefix(some);
  }
  return absl::OkStatus();
}

absl::Status OwnFills::Send(absl::Span<const FillRequest> fills, absl::Time deadline) {
  absl::Status status =
      SendMessage(channel_.get(), fills.data(), fills.size() * sizeof(FillRequest), deadline);
  if (!status.ok()) return Broken(std::move(status));
  for (const FillRequest& fill : fills) in_flight_.push_back({fill.reservation_id, fill.index});
  return absl::OkStatus();
}

// Takes the answers of one message.
absl::Status OwnFills::Receive(uint64_t reservation_id, absl::Time deadline) {
  std::array<FillReply, kMaxFillsInFlight> replies;
  const absl::StatusOr<size_t> count =
      ReceiveFillReplies(channel_.get(), absl::MakeSpan(replies), deadline, kLookOn);
  if (!count.ok()) return Broken(count.status());
  absl::Status failed;
  for (size_t i = 0; i < *count; ++i) {
    if (in_flight_.empty() || replies[i].index != in_flight_.front().index) {
      return Broken(absl::InternalError("fill channel: an answer out of order"));
    }
    // A put that gave up left its fills to the next one.
    const bool ours = in_flight_.front().reservation_id == reservation_id;
    in_flight_.pop_front();
    if (!ours || replies[i].status == FillStatus::kOk || !failed.ok()) continue;
    failed = replies[i].status == FillStatus::kGone
                 ? absl::AbortedError("the reservation has ended")
                 : absl::InternalError(absl::StrCat("the copier refused part ", replies[i].index));
  }
  return failed;
}

absl::Status OwnFills::Broken(absl::Status status) {
  if (!absl::IsDeadlineExceeded(status)) broken_.store(true, std::memory_order_relaxed);
  return status;
}

}  // namespace kvd
