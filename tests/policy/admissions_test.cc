#include "policy/admissions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "policy/budgeted_admission.h"
#include "policy/class_predicted.h"

namespace kvd {
namespace {

ChainHash HashOf(uint64_t key) {
  key = key * 2 + 1;  // No key of these tests is held out.
  ChainHash hash;
  std::memcpy(hash.bytes.data(), &key, sizeof key);
  return hash;
}

AdmissionPolicy::Candidate Candidate(uint64_t key, uint32_t uses = 0, NamespaceId ns = 1) {
  return {.ns = ns, .uses = uses, .blocks = 1, .bytes = 1, .key = HashOf(key)};
}

TEST(AdmissionsTest, EveryNameHasAPolicyOfThatName) {
  const std::string names(AdmissionNames());
  int found = 0;
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(names, ", "))) {
    const auto policy = MakeAdmission(name, 16);
    ASSERT_NE(policy, nullptr) << name;
    EXPECT_EQ(policy->name(), name);
    ++found;
  }
  EXPECT_EQ(found, 4);
  EXPECT_EQ(MakeAdmission("some", 16), nullptr);
}

TEST(AdmissionsTest, AllAndNoneDoNotLook) {
  EXPECT_TRUE(MakeAdmission("all", 16)->Admit(Candidate(1), 0));
  EXPECT_FALSE(MakeAdmission("none", 16)->Admit(Candidate(1, 9), 0));
}

TEST(AdmissionsTest, SecondTouchWantsAUseOrAReturn) {
  const auto policy = MakeAdmission("second-touch", 64);
  policy->Stored(HashOf(1), 1);
  EXPECT_FALSE(policy->Admit(Candidate(1), 0));
  EXPECT_TRUE(policy->Admit(Candidate(1, 1), 0));
  policy->Left(HashOf(1), 1, 0);
  EXPECT_FALSE(policy->Admit(Candidate(1), 0));
  policy->Stored(HashOf(1), 1);
  EXPECT_TRUE(policy->Admit(Candidate(1), 0));
  EXPECT_FALSE(policy->Admit(Candidate(1, 0, 2), 0)) << "another namespace's";
  policy->Left(HashOf(1), 1, 0);
  EXPECT_FALSE(policy->Admit(Candidate(1), 0));
  AdmissionPolicy::Candidate told = Candidate(2);
  told.returned = true;
  EXPECT_TRUE(policy->Admit(told, 0));
}

TEST(AdmissionsTest, OldGhostsGoFirst) {
  Ghosts ghosts(4);  // One set.
  for (uint64_t key = 0; key < 4; ++key) ghosts.Remember(HashOf(key), 1).note = 7;
  ghosts.Remember(HashOf(0), 1);  // Young again.
  ghosts.Remember(HashOf(9), 1);
  EXPECT_EQ(ghosts.Find(HashOf(1), 1), nullptr);
  ASSERT_NE(ghosts.Find(HashOf(0), 1), nullptr);
  EXPECT_EQ(ghosts.Find(HashOf(0), 1)->note, 7);
  EXPECT_EQ(ghosts.Find(HashOf(9), 1)->note, 0);
}

TEST(AdmissionsTest, ClassesThatComeBackAreAdmittedAndOthersNot) {
  ClassPredicted policy({.ghosts = 1u << 16, .least_samples = 100});
  EXPECT_FALSE(policy.Admit(Candidate(1), 0)) << "an unknown class: second touch";
  EXPECT_TRUE(policy.Admit(Candidate(1, 1), 0));
  // In namespace 1 one in two that was never used comes back, in namespace 2 one in ten.
  for (uint64_t key = 0; key < 1000; ++key) {
    policy.Left(HashOf(key), 1, 0);
    policy.Left(HashOf(key), 2, 0);
    if (key % 2 == 0) policy.Stored(HashOf(key), 1);
    if (key % 10 == 0) policy.Stored(HashOf(key), 2);
  }
  EXPECT_TRUE(policy.Admit(Candidate(5000, 0, 1), 0));
  EXPECT_FALSE(policy.Admit(Candidate(5000, 0, 2), 0));
  EXPECT_TRUE(policy.Admit(Candidate(10, 0, 2), 0)) << "it came back itself";
  // Used blocks of namespace 2 that never come back lose what a second touch gave them.
  for (uint64_t key = 2000; key < 3000; ++key) policy.Left(HashOf(key), 2, 1);
  EXPECT_FALSE(policy.Admit(Candidate(5000, 1, 2), 0));
}

TEST(AdmissionsTest, WhatAClassWasFades) {
  ClassPredicted policy({.ghosts = 1u << 16});
  for (uint64_t key = 0; key < 10'000; ++key) {
    policy.Left(HashOf(key), 1, 0);
    policy.Stored(HashOf(key), 1);
  }
  EXPECT_TRUE(policy.Admit(Candidate(1u << 20), 0));
  for (uint64_t key = 20'000; key < 32'000; ++key) policy.Left(HashOf(key), 1, 0);
  EXPECT_FALSE(policy.Admit(Candidate(1u << 20), 0));
}

TEST(AdmissionsTest, OneKeyIn32GoesOnBeingMeasured) {
  ClassPredicted policy({.ghosts = 1u << 16});
  int admitted = 0;
  for (uint64_t key = 0; key < 3200; ++key) {
    AdmissionPolicy::Candidate candidate = Candidate(0, 1);
    std::memcpy(candidate.key.bytes.data(), &key, sizeof key);
    admitted += policy.Admit(candidate, 0);
  }
  EXPECT_EQ(admitted, 3100);
}

TEST(BudgetedAdmissionTest, ABlockIsPaidForWithItsAncestorsOrDeclined) {
  constexpr uint64_t kDayOfMinutes = 1440 * WriteBudget::kLeastBurst;
  BudgetedAdmission admission(MakeAdmission("second-touch", 64), kDayOfMinutes, 0);
  EXPECT_EQ(admission.name(), "second-touch");
  AdmissionPolicy::Candidate candidate = Candidate(1, 1);
  candidate.blocks = 3;
  candidate.bytes = WriteBudget::kLeastBurst;
  EXPECT_FALSE(admission.Admit(Candidate(2), 0));
  EXPECT_TRUE(admission.Admit(candidate, 0));
  EXPECT_FALSE(admission.Admit(candidate, 0));
  EXPECT_TRUE(admission.Admit(candidate, 60 * kSecond));
  EXPECT_EQ(admission.counts().declined_blocks, 1u);
  EXPECT_EQ(admission.counts().admitted_blocks, 6u);
  EXPECT_EQ(admission.counts().admitted_bytes, 2 * WriteBudget::kLeastBurst);
  EXPECT_EQ(admission.counts().over_budget_blocks, 1u);
  EXPECT_EQ(admission.counts().over_budget_bytes, WriteBudget::kLeastBurst);
  // What the policy learns goes through.
  admission.Left(HashOf(9), 1, 0);
  admission.Stored(HashOf(9), 1);
  EXPECT_TRUE(admission.Admit(Candidate(9), 300 * kSecond));
}

}  // namespace
}  // namespace kvd
