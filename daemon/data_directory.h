// The folder of what outlives the process: its lock, its identity, and what the tiers keep there.
//
//   lock       held by the daemon that uses the folder; it ends with the process
//   identity   format and UUID of the folder, which also names the arena's folder in memory
//   index/     the index of the NVMe tier (tiers/rocks_index.h)
//
// Threads: immutable after construction.

#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace kvd {

class DataDirectory {
 public:
  static constexpr int kFormat = 1;

  // Makes the folder if its parent exists, and takes its lock.
  //   kAlreadyExists     another daemon uses it.
  //   kFailedPrecondition  it is of a newer format, or not this user's to write: nothing is
  //   touched. what the system says otherwise, with the path.
  // A damaged identity is put aside and replaced: what hung on it is not found again.
  static absl::StatusOr<DataDirectory> Open(const std::string& path);

  DataDirectory(DataDirectory&& other) noexcept;
  DataDirectory& operator=(DataDirectory&&) = delete;
  ~DataDirectory();

  const std::string& path() const { return path_; }
  const std::string& uuid() const { return uuid_; }  // 32 hexadecimal digits.
  bool identity_was_damaged() const { return identity_was_damaged_; }

 private:
  DataDirectory() = default;

  std::string path_;
  std::string uuid_;
  bool identity_was_damaged_ = false;
  int lock_ = -1;
};

// Whether a status of Open() says that the folder is of a newer format.
bool IsNewerFormat(const absl::Status& status);

}  // namespace kvd
