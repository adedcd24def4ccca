#include "policy/class_predicted.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace kvd {
namespace {

constexpr uint32_t kUseClasses = 5;
constexpr uint32_t kNamespaceClasses = 4096;  // Numbers beyond share.
constexpr uint32_t kMostSamples = 4096;       // Then both counts are halved: the past fades.
constexpr uint32_t kKeysPerHoldout = 32;

uint16_t ClassOf(NamespaceId ns, uint32_t uses) {
  const uint32_t use_class = std::min<uint32_t>(std::bit_width(uses), kUseClasses - 1);
  return static_cast<uint16_t>(ns % kNamespaceClasses * kUseClasses + use_class);
}

// Keys are hashes: any bits of them will do.
bool HeldOut(const ChainHash& key) {
  uint64_t word;
  std::memcpy(&word, key.bytes.data(), sizeof word);
  return word % kKeysPerHoldout == 0;
}

}  // namespace

ClassPredicted::ClassPredicted(const Options& options)
    : options_(options), ghosts_(options.ghosts), classes_(kNamespaceClasses * kUseClasses) {}

bool ClassPredicted::Admit(const Candidate& candidate, Nanos) {
  if (HeldOut(candidate.key)) return false;
  const Ghosts::Ghost* ghost = ghosts_.Find(candidate.key, candidate.ns);
  if (candidate.returned || (ghost != nullptr && ghost->returned)) return true;
  const Class& cls = classes_[ClassOf(candidate.ns, candidate.uses)];
  if (cls.left < options_.least_samples) return candidate.uses > 0;
  return uint64_t{cls.came_back} * 1000 >= uint64_t{cls.left} * options_.least_permille;
}

void ClassPredicted::Stored(const ChainHash& key, NamespaceId ns) {
  Ghosts::Ghost* ghost = ghosts_.Find(key, ns);
  if (ghost == nullptr || ghost->returned) return;
  ghost->returned = true;
  Class& cls = classes_[ghost->note];
  cls.came_back = std::min(cls.came_back + 1, cls.left);
}

void ClassPredicted::Left(const ChainHash& key, NamespaceId ns, uint32_t uses) {
  Ghosts::Ghost& ghost = ghosts_.Remember(key, ns);
  ghost.note = ClassOf(ns, uses);
  ghost.returned = false;
  Class& cls = classes_[ghost.note];
  if (++cls.left < kMostSamples) return;
  cls.left /= 2;
  cls.came_back /= 2;
}

}  // namespace kvd
