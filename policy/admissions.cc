#include "policy/admissions.h"

#include "policy/class_predicted.h"
#include "policy/ghosts.h"

namespace kvd {
namespace {

class Always final : public AdmissionPolicy {
 public:
  explicit Always(bool admits) : admits_(admits) {}
  std::string_view name() const override { return admits_ ? "all" : "none"; }
  bool Admit(const Candidate&, Nanos) override { return admits_; }
  void Stored(const ChainHash&, NamespaceId) override {}
  void Left(const ChainHash&, NamespaceId, uint32_t) override {}

 private:
  const bool admits_;
};

class SecondTouch final : public AdmissionPolicy {
 public:
  explicit SecondTouch(uint32_t ghosts) : ghosts_(ghosts) {}
  std::string_view name() const override { return "second-touch"; }

  bool Admit(const Candidate& candidate, Nanos) override {
    if (candidate.uses > 0 || candidate.returned) return true;
    const Ghosts::Ghost* ghost = ghosts_.Find(candidate.key, candidate.ns);
    return ghost != nullptr && ghost->returned;
  }
  void Stored(const ChainHash& key, NamespaceId ns) override {
    if (Ghosts::Ghost* ghost = ghosts_.Find(key, ns); ghost != nullptr) ghost->returned = true;
  }
  void Left(const ChainHash& key, NamespaceId ns, uint32_t) override {
    ghosts_.Remember(key, ns).returned = false;
  }

 private:
  Ghosts ghosts_;
};

constexpr uint32_t kGhostsPerBlock = 4;
constexpr uint32_t kMostGhosts = 1u << 26;

}  // namespace

std::unique_ptr<AdmissionPolicy> MakeAdmission(std::string_view name, uint32_t max_blocks) {
  const uint32_t ghosts =
      max_blocks < kMostGhosts / kGhostsPerBlock ? max_blocks * kGhostsPerBlock : kMostGhosts;
  if (name == "all") return std::make_unique<Always>(true);
  if (name == "none") return std::make_unique<Always>(false);
  if (name == "second-touch") return std::make_unique<SecondTouch>(ghosts);
  if (name == "class-predicted") {
    return std::make_unique<ClassPredicted>(ClassPredicted::Options{.ghosts = ghosts});
  }
  return nullptr;
}

std::string_view AdmissionNames() { return "all, none, second-touch, class-predicted"; }

}  // namespace kvd
