// A folder in memory (tmpfs) that goes with its owner, for arenas that have names.

#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace kvd {

class MemoryFolder {
 public:
  MemoryFolder() {
    if (mkdtemp(path_) == nullptr) std::abort();
  }
  ~MemoryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  MemoryFolder(const MemoryFolder&) = delete;
  MemoryFolder& operator=(const MemoryFolder&) = delete;

  std::string path() const { return path_; }

 private:
  char path_[32] = "/dev/shm/kvd-test-XXXXXX";
};

}  // namespace kvd
