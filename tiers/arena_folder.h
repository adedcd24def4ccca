// The folder that an arena with a name lies in: a file for each region and a table of their slots,
// in memory (tmpfs or hugetlbfs), readable and writable by the daemon's user alone.
//
// Whoever opens it holds the lock of the data directory, so no two processes write it.
//
// Threads: immutable after construction, and safe from any.

#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvd {

class ArenaFolder {
 public:
  // The folder `name` in `parent`, made if it is not there.
  //   kFailedPrecondition  `parent` is neither tmpfs nor hugetlbfs, or the folder is somebody
  //                        else's, or open to others: nothing is touched then.
  //   what the system says otherwise, with the path.
  static absl::StatusOr<ArenaFolder> Open(const std::string& parent, const std::string& name);

  ArenaFolder(ArenaFolder&& other) noexcept;
  ArenaFolder& operator=(ArenaFolder&&) = delete;
  ~ArenaFolder();

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  bool hugetlb() const { return hugetlb_; }
  uint64_t page_bytes() const { return page_bytes_; }  // Files are cut into these.

  uint64_t free_bytes() const;  // Of the file system.

  static std::string RegionFile(uint32_t number);
  static constexpr const char* kTableFile = "slots";

  // The numbers of the regions that have files.
  std::set<uint32_t> RegionNumbers() const;
  void RemoveRegion(uint32_t number) const;
  // Takes away regions and table, and nothing else. Who still maps them keeps them.
  void Clear() const;

 private:
  ArenaFolder() = default;

  int fd_ = -1;
  std::string path_;
  bool hugetlb_ = false;
  uint64_t page_bytes_ = 4096;
};

}  // namespace kvd
