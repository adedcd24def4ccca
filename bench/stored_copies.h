// Where the bytes of known blocks lie in a stopped daemon's files: what `mutate` aims at, and what
// tells whether a mutation damaged anything.
//
// Threads: functions that block; no daemon runs on the files.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/crash_account.h"

namespace kvd {

struct ByteRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// One part of a block as it is stored, with what says whose it is.
struct StoredCopy {
  CrashChain* chain = nullptr;
  uint32_t block = 0;
  uint32_t part = 0;
  std::string header_file;
  ByteRange header;
  std::string payload_file;
  ByteRange payload;
};

// The records that a start would find on the device or file `path` with the index in `index_path`:
// what media still have of records that are gone is no copy.
absl::StatusOr<std::vector<StoredCopy>> CopiesOnNvme(const std::string& path, uint64_t device_bytes,
                                                     const std::string& index_path,
                                                     CrashAccount& account);

// The slots that the table in the arena's folder names.
absl::StatusOr<std::vector<StoredCopy>> CopiesInArena(const std::string& folder,
                                                      CrashAccount& account);

// All bytes of the file, or a range of it. Errors: as the system says.
absl::StatusOr<std::string> ReadBytes(const std::string& file, ByteRange range);
absl::Status WriteBytes(const std::string& file, uint64_t offset, std::string_view bytes);

}  // namespace kvd
