// A running daemon that reads its configuration again, and a program that only checks one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "bench/certificates.h"
#include "client/client.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr int64_t kSomebody = 65534;  // Users without privileges.
constexpr int64_t kSomebodyElse = 65533;

class SighupTest : public testing::Test {
 protected:
  void Write(const std::string& text) {
    std::ofstream(file_) << "dram = \"16MiB\"\nsocket.mode = \"0666\"\n" << text;
  }
  void Start(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"--config", file_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto daemon = DaemonProcess::Start({.arguments = arguments});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }
  // Sends SIGHUP and waits until the log says `event` once more than before.
  std::string Reload(const std::string& event) {
    const std::string before = daemon_->child().Errors();
    daemon_->child().Signal(SIGHUP);
    const auto since = [&] { return daemon_->child().Errors().substr(before.size()); };
    EXPECT_TRUE(daemon_->WaitFor([&](const v1::StatusReply&) {
      return since().find(event) != std::string::npos;
    })) << since();
    return since();
  }
  // What a client of that user says that puts or gets blocks 0 to 3.
  std::string Run(const std::string& verb, int64_t uid) {
    ChildProcess peer(KVD_PEER_PROGRAM, {daemon_->path(), "4096", "0", "4", verb}, uid);
    const std::string said = peer.ReadToEnd();
    peer.Wait();
    return said;
  }

  TestFolder folder_;
  const std::string file_ = folder_.path() + "/kvd.toml";
  std::unique_ptr<DaemonProcess> daemon_;
};

TEST_F(SighupTest, WhatIsLiveChangesAndTheRestIsNamedInTheLog) {
  Write("log_level = \"warn\"\n");
  Start();
  Write("log_level = \"info\"\npolicy = \"lru\"\ncopiers = 7\nmetrics.operations = false\n");
  const std::string said = Reload("config.needs_restart");
  EXPECT_THAT(said, HasSubstr("config.reloaded changed=\"log_level\""));
  EXPECT_THAT(said, HasSubstr("config.needs_restart options=\"copiers,metrics.operations\""));
  grpc::ClientContext context;
  const auto reader = daemon_->admin().Events(&context, {});
  std::vector<std::string> kinds;
  for (v1::Event event; reader->Read(&event);) kinds.push_back(event.kind());
  EXPECT_THAT(kinds, testing::ElementsAre("config-reloaded"));
  EXPECT_EQ(daemon_->Stop(), 0);
}

// A certificate is renewed in place, as by a tool that does so every few weeks.
class SighupTlsTest : public SighupTest {
 protected:
  // Fresh ones, of an authority of their own, in place of those that were there.
  void MakeFiles() { ASSERT_TRUE(MakeCertificates(folder_.path()).ok()); }
  std::string File(const std::string& name) const { return folder_.path() + "/" + name; }
  void StartWithTls() {
    MakeFiles();
    Write(absl::StrCat("[tcp]\nlisten = \"127.0.0.1:0\"\ncertificate = \"", File("server.pem"),
                       "\"\nkey = \"", File("server.key"), "\"\nclient_ca = \"", File("ca.pem"),
                       "\"\n"));
    Start();
  }
  std::unique_ptr<Client> NewClient(const std::string& certificate, const std::string& authority) {
    ClientOptions options{.endpoint = "tcp:" + daemon_->Status().tcp(), .timeout = kPatience};
    options.tls = {.certificate = File(certificate + ".pem"),
                   .key = File(certificate + ".key"),
                   .authority = File(authority),
                   .server_name = kTestServerName};
    return std::make_unique<Client>(std::move(options));
  }
};

TEST_F(SighupTlsTest, ARenewedCertificateServesWhoComesAndKeepsWhoIsThere) {
  StartWithTls();
  const auto before = NewClient("client", "ca.pem");
  ASSERT_TRUE(before->Connect().ok());
  for (const char* name : {"ca.pem", "client.pem", "client.key"}) {
    std::filesystem::copy(File(name), File(std::string("old-") + name));
  }

  MakeFiles();
  EXPECT_THAT(Reload("config.reloaded"),
              HasSubstr("changed=\"tcp.certificate,tcp.key,tcp.client_ca\""));

  EXPECT_TRUE(NewClient("client", "ca.pem")->Connect().ok());
  EXPECT_FALSE(NewClient("old-client", "old-ca.pem")->Connect(absl::Seconds(1)).ok());
  EXPECT_TRUE(before->RegisterNamespace(TestModel(4096)).ok());
  EXPECT_EQ(daemon_->Stop(), 0);
}

TEST_F(SighupTlsTest, AKeyThatDoesNotBelongChangesNothing) {
  StartWithTls();
  const std::string key = File("server.key");
  std::filesystem::copy(key, File("good.key"));
  std::filesystem::copy(File("client.key"), key, std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(Reload("config.kept"), HasSubstr("does not belong to the certificate"));
  EXPECT_TRUE(NewClient("client", "ca.pem")->Connect().ok());
}

TEST_F(SighupTest, AFileWithMistakesChangesNothingAndSaysWhy) {
  Write("");
  Start();
  Write("log_level = \"debug\"\ncopier = 1\n");
  const std::string said = Reload("config.kept");
  EXPECT_THAT(said, HasSubstr(absl::StrCat(
                        file_, ":4:1: copier: unknown key; the nearest known one is copiers")));
  EXPECT_THAT(said, Not(HasSubstr("config.reloaded")));
  Write("log_level = \"debug\"\n");
  EXPECT_THAT(Reload("config.reloaded"), HasSubstr("changed=\"log_level\""));
}

TEST_F(SighupTest, RulesAboutDomainsCountForSessionsThatOpenThen) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can be somebody else";
  Write("");
  Start();
  ASSERT_EQ(Run("put", kSomebody), "stored 4 present 0\n");
  EXPECT_EQ(Run("get", kSomebodyElse), "blocks 0 wrong 0\n");

  const std::string together = absl::StrCat("[[domain]]\nname = \"chat\"\nusers = [", kSomebody,
                                            "]\ngroups = [", kSomebodyElse, "]\n");
  Write(together);
  EXPECT_THAT(Reload("config.reloaded"), HasSubstr("changed=\"domain\""));
  // Another tenant now: what its user had as a domain of its own is not in it.
  EXPECT_EQ(Run("put", kSomebody), "stored 4 present 0\n");
  EXPECT_EQ(Run("get", kSomebodyElse), "blocks 4 wrong 0\n");
  EXPECT_EQ(Run("get", -1), "blocks 0 wrong 0\n");

  Write("unlisted = \"refuse\"\n" + together);
  Reload("config.reloaded");
  EXPECT_THAT(Run("get", -1), HasSubstr("names no domain for user 0"));
  EXPECT_EQ(Run("get", kSomebody), "blocks 4 wrong 0\n");

  Write("");
  Reload("config.reloaded");
  EXPECT_EQ(Run("get", kSomebody), "blocks 4 wrong 0\n");  // What it put first.
  EXPECT_EQ(Run("get", kSomebodyElse), "blocks 0 wrong 0\n");
  const v1::AuditReply audit = daemon_->Audit();
  EXPECT_EQ(audit.errors(), 0u) << audit.first_error();
}

TEST_F(SighupTest, WithoutAFileTheDaemonSaysSoAndGoesOn) {
  auto daemon = DaemonProcess::Start({.arguments = {"--dram", "16MiB"}});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = *std::move(daemon);
  EXPECT_THAT(Reload("config.kept"), HasSubstr("started without --config"));
  EXPECT_EQ(daemon_->Stop(), 0);
}

TEST_F(SighupTest, OneSignalAfterAnotherAndThenTheEnd) {
  Write("");
  Start();
  for (int i = 0; i < 20; ++i) daemon_->child().Signal(SIGHUP);
  EXPECT_EQ(daemon_->Stop(), 0);
}

TEST_F(SighupTest, ADaemonDoesNotStartWithMistakes) {
  Write("copier = 1\nblocks = 0\n");
  for (const char* flag : {"--config", "--check-config"}) {
    ChildProcess daemon(KVD_PROGRAM, {flag, file_});
    EXPECT_EQ(daemon.Wait(), 2);
    EXPECT_THAT(daemon.Errors(), HasSubstr(file_ + ":3:1: copier: unknown key"));
    EXPECT_THAT(daemon.Errors(), HasSubstr(file_ + ":4:10: blocks: 0 must be"));
  }
}

TEST_F(SighupTest, AFileWithoutMistakesIsCheckedAndPrinted) {
  Write("");
  ChildProcess check(KVD_PROGRAM, {"--check-config", file_});
  EXPECT_EQ(check.Wait(), 0);
  EXPECT_EQ(check.ReadToEnd(), file_ + ": nothing is wrong\n");
  ChildProcess print(KVD_PROGRAM, {"--config", file_, "--print-config"});
  EXPECT_EQ(print.Wait(), 0);
  EXPECT_THAT(print.ReadToEnd(), HasSubstr("# From: file.\ndram = \"16MiB\"\n"));
}

}  // namespace
}  // namespace kvd
