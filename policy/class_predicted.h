// Admits blocks of those classes of which enough come back.
//
// A class is a namespace and how often a block was used while it was in DRAM (0, 1, 2-3, 4-7,
// more). What leaves unadmitted becomes a ghost with its class; when its key is stored again while
// the ghost is known, the class had one that came back. The share decides. One key in 32 is never
// admitted, so that classes that are admitted go on being measured.
//
// Threads: one; deterministic.

#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "policy/admission.h"
#include "policy/ghosts.h"

namespace kvd {

class ClassPredicted final : public AdmissionPolicy {
 public:
  struct Options {
    uint32_t ghosts = 1u << 18;
    uint32_t least_samples = 64;    // Of a class, before its share counts; until then second touch.
    uint32_t least_permille = 250;  // That come back, for a class to be admitted.
  };
  explicit ClassPredicted(const Options& options);

  std::string_view name() const override { return "class-predicted"; }
  bool Admit(const Candidate& candidate, Nanos now) override;
  void Stored(const ChainHash& key, NamespaceId ns) override;
  void Left(const ChainHash& key, NamespaceId ns, uint32_t uses) override;

 private:
  struct Class {
    uint32_t left = 0;
    uint32_t came_back = 0;
  };

  const Options options_;
  Ghosts ghosts_;
  std::vector<Class> classes_;
};

}  // namespace kvd
