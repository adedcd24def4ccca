// Keys that have left, remembered for a while in a few bytes each: whether a block comes back is
// what admission wants to know of it.
//
// A table of sets with four places each; in a full set the oldest goes. Keys are told apart by 32
// bits of a hash, so about one in a hundred million answers is wrong, which costs a wrong guess.
//
// Threads: one. All memory is set aside by the constructor.

#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "proto/types/block.h"

namespace kvd {

class Ghosts {
 public:
  struct Ghost {
    uint32_t tag = 0;       // 0: nobody.
    uint16_t note = 0;      // The caller's.
    bool returned = false;  // Was stored again since.
  };

  // Room for about `entries` keys.
  explicit Ghosts(uint32_t entries);

  // Null: not known, or forgotten. Good until the next Remember().
  Ghost* Find(const ChainHash& key, NamespaceId ns);
  // The key's place, new or as it was.
  Ghost& Remember(const ChainHash& key, NamespaceId ns);

 private:
  using Set = std::array<Ghost, 4>;  // Youngest first.

  std::vector<Set> sets_;  // A power of two.
};

}  // namespace kvd
