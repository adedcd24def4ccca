#include "policy/policies.h"

#include "policy/lru.h"

namespace kvd {

std::unique_ptr<EvictionPolicy> MakePolicy(std::string_view name, uint32_t max_blocks) {
  if (name == "lru") return std::make_unique<LruPolicy>(max_blocks);
  return nullptr;
}

std::string_view PolicyNames() { return "lru"; }

}  // namespace kvd
