// Who of a process before still lives, and when they end.
//
// Threads: Find() is pure; a FormerReaders has a thread of its own until the last has ended.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "tiers/slot_table.h"

namespace kvd {

class FormerReaders {
 public:
  struct Reader {
    uint32_t number = 0;  // Of its session.
    ReaderRow session;
    int pidfd = -1;  // Whoever has the value closes it.
  };

  // Those of `sessions` whose processes live. kUnavailable: of one it cannot be told.
  static absl::StatusOr<std::vector<Reader>> Find(
      const std::vector<std::pair<uint32_t, ReaderRow>>& sessions);

  // Calls `ended` with the number of each reader when its process has ended, on a thread of this.
  FormerReaders(std::vector<Reader> readers, std::function<void(uint32_t number)> ended);
  ~FormerReaders();
  FormerReaders(const FormerReaders&) = delete;
  FormerReaders& operator=(const FormerReaders&) = delete;

 private:
  void Run();

  std::vector<Reader> readers_;
  const std::function<void(uint32_t)> ended_;
  int stop_ = -1;  // eventfd
  std::thread thread_;
};

}  // namespace kvd
