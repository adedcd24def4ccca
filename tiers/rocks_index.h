// RecordIndex in RocksDB, in a directory of its own, written by a thread of its own: batches with a
// write-ahead log and without fsync. The only place that includes RocksDB.
//
// Whatever befalls the directory, the daemon starts: what cannot be opened is renamed to
// PATH.damaged-N (one is kept), and the index begins anew, to be filled from the media.
//
// Threads: as RecordIndex.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/record_index.h"

namespace kvd {

struct RocksIndexOptions {
  std::string path;              // DIR/index; made when it is absent, its parent is not.
  uint32_t waiting_max = 65536;  // Rows; beyond it they are dropped, see RecordIndex.
  uint32_t batch_rows = 64;      // Written together when so many wait,
  uint32_t batch_ms = 50;        // or when the first of them has waited so long.
};

struct RocksIndexStats {
  uint64_t rows_written = 0;
  uint64_t rows_dropped = 0;  // Too much waited.
  uint64_t write_errors = 0;  // Batches that could not be written.
  uint32_t rows_waiting = 0;
};

class RocksIndex : public RecordIndex {
 public:
  // `moved_to` tells where a damaged one went; else it is left alone.
  //   kAborted             another process has it open
  //   errors of the system the directory cannot be written: nothing was changed
  static absl::StatusOr<std::unique_ptr<RocksIndex>> Open(const RocksIndexOptions& options,
                                                          std::string* moved_to);

  virtual RocksIndexStats stats() const = 0;  // Any thread.
};

}  // namespace kvd
