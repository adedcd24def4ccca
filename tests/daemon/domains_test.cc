#include "daemon/domains.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

namespace kvd {
namespace {

DomainRules ChatAndBatch() {
  return {.domains = {{.name = "chat", .users = {1000}, .groups = {50, 60}, .identities = {"chat"}},
                      {.name = "batch", .users = {1001, 1002}, .groups = {70}}}};
}

TEST(DomainsTest, WithoutRulesEachUserIsADomain) {
  Domains domains;
  const auto a = domains.OfUser(1000, {100});
  const auto b = domains.OfUser(1001, {100});
  ASSERT_TRUE(a.has_value() && b.has_value());
  EXPECT_NE(*a, *b);
  EXPECT_EQ(domains.OfUser(1000, {200}), a);
  EXPECT_EQ(domains.Name(*a), "uid:1000");
  EXPECT_EQ(domains.Name(*b), "uid:1001");
}

TEST(DomainsTest, UsersOfOneRuleShareADomain) {
  Domains domains(ChatAndBatch());
  const auto batch = domains.OfUser(1001, {});
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(domains.OfUser(1002, {}), batch);
  EXPECT_EQ(domains.Name(*batch), "batch");
  EXPECT_NE(domains.OfUser(1000, {}), batch);
}

TEST(DomainsTest, AnyGroupOfAPeerCounts) {
  Domains domains(ChatAndBatch());
  EXPECT_EQ(domains.Name(*domains.OfUser(5, {1, 2, 60})), "chat");
  EXPECT_EQ(domains.Name(*domains.OfUser(5, {70})), "batch");
  EXPECT_EQ(domains.Name(*domains.OfUser(5, {1, 2})), "uid:5");
}

TEST(DomainsTest, ARuleForTheUserBeatsOneForAGroupAndTheFirstGroupRuleWins) {
  Domains domains(ChatAndBatch());
  EXPECT_EQ(domains.Name(*domains.OfUser(1001, {50})), "batch");
  EXPECT_EQ(domains.Name(*domains.OfUser(5, {70, 50})), "chat");
}

TEST(DomainsTest, AnIdentityIsThatOfARuleOrItsOwn) {
  Domains domains(ChatAndBatch());
  EXPECT_EQ(domains.OfIdentity("chat"), domains.OfUser(1000, {}));
  EXPECT_EQ(domains.Name(*domains.OfIdentity("spiffe://x/y")), "certificate:spiffe://x/y");
  EXPECT_EQ(domains.OfIdentity(""), std::nullopt);
  EXPECT_TRUE(domains.OfIdentity(std::string(Domains::kMaxIdentityBytes, 'x')).has_value());
  EXPECT_EQ(domains.OfIdentity(std::string(Domains::kMaxIdentityBytes + 1, 'x')), std::nullopt);
}

// A certificate cannot name itself into the domain of a rule or of a user.
TEST(DomainsTest, IdentitiesThatLookLikeOtherNamesStayApart) {
  Domains domains(ChatAndBatch());
  const auto user = domains.OfUser(7, {});
  const auto batch = domains.OfUser(1001, {});
  EXPECT_NE(domains.OfIdentity("uid:7"), user);
  EXPECT_NE(domains.OfIdentity("batch"), batch);
  EXPECT_NE(domains.OfIdentity("a\n"), domains.OfIdentity("a\\n"));
  EXPECT_EQ(domains.Name(*domains.OfIdentity("a\n")), "certificate:a\\n");
}

TEST(DomainsTest, UnlistedPeersAreRefusedWhenTheRulesSaySo) {
  DomainRules rules = ChatAndBatch();
  rules.unlisted = Unlisted::kRefuse;
  Domains domains(rules);
  EXPECT_TRUE(domains.OfUser(1000, {}).has_value());
  EXPECT_TRUE(domains.OfUser(5, {70}).has_value());
  EXPECT_TRUE(domains.OfIdentity("chat").has_value());
  EXPECT_EQ(domains.OfUser(5, {1}), std::nullopt);
  EXPECT_EQ(domains.OfIdentity("batch"), std::nullopt);
}

TEST(DomainsTest, NumbersStayWithTheirNamesWhenRulesChange) {
  Domains domains(ChatAndBatch());
  const auto chat = domains.OfUser(1000, {});
  const auto alone = domains.OfUser(5, {});
  domains.SetRules({.domains = {{.name = "new", .users = {1000}}, {.name = "chat", .users = {5}}}});
  EXPECT_EQ(domains.OfUser(5, {}), chat);
  const auto fresh = domains.OfUser(1000, {});
  EXPECT_NE(fresh, chat);
  EXPECT_NE(fresh, alone);
  EXPECT_EQ(domains.Name(*alone), "uid:5");
  domains.SetRules({});
  EXPECT_EQ(domains.OfUser(5, {}), alone);
}

TEST(DomainsTest, NumbersThatNobodyHasGotHaveANameToo) {
  const Domains domains;
  EXPECT_EQ(domains.Name(0), "domain:0");
  EXPECT_EQ(domains.Name(9), "domain:9");
}

TEST(DomainsTest, BeyondTheBoundNewDomainsAreRefusedAndOldOnesAreNot) {
  Domains domains;
  const auto first = domains.OfUser(1, {});
  for (uid_t uid = 2; uid <= Domains::kMaxDomains; ++uid) {
    ASSERT_TRUE(domains.OfUser(uid, {}).has_value());
  }
  EXPECT_EQ(domains.OfUser(Domains::kMaxDomains + 1, {}), std::nullopt);
  EXPECT_EQ(domains.OfUser(1, {}), first);
}

TEST(DomainsTest, ThreadsThatAskAtOnceGetOneAnswer) {
  Domains domains;
  std::vector<std::vector<DomainId>> answers(4);
  std::vector<std::thread> threads;
  for (std::vector<DomainId>& answer : answers) {
    threads.emplace_back([&domains, &answer] {
      for (uid_t uid = 0; uid < 500; ++uid) {
        answer.push_back(*domains.OfUser(uid, {}));
        domains.Name(answer.back());
        if (uid % 100 == 0) domains.SetRules({});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<DomainId>& answer : answers) EXPECT_EQ(answer, answers[0]);
}

}  // namespace
}  // namespace kvd
