// A client of an earlier version works with the daemon of this one: its bytes, recorded once, are
// sent again, and the answers mean what they meant. The answers are read as that client reads them,
// by field number and offset, and not through this version's messages, so that a change of the wire
// that would break it fails here.
//
// recorded/README.md says how to record a new one.

#include "tests/e2e/recorded_session.h"

#include <fcntl.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "proto/types/check.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// What a number on the wire names. The daemon of today gives its own, so what was recorded is
// replaced by what was answered to the same question now.
enum class Name { kNamespace, kHold, kLease, kReservation, kPin, kRegion };

// How a field of an answer is compared.
struct Rule {
  enum What { kEqual, kName, kAnything, kExtents } what = kEqual;
  Name name = Name::kHold;
};
using Rules = std::map<int, Rule>;  // By field number.

// The wire of protocol version 1.
const std::map<std::string, Rules>& Answers() {
  static const auto* const answers = new std::map<std::string, Rules>{
      {"RegisterNamespace", {{1, {Rule::kName, Name::kNamespace}}, {2, {}}, {3, {}}}},
      {"Lookup",
       {{1, {}},
        {2, {}},
        {3, {Rule::kName, Name::kLease}},
        {4, {}},
        {5, {Rule::kAnything}},
        {6, {}},
        {7, {Rule::kExtents}},
        {8, {Rule::kName, Name::kHold}}}},
      {"Load",
       {{1, {}},
        {2, {}},
        {3, {Rule::kExtents}},
        {4, {Rule::kName, Name::kHold}},
        {5, {}},
        {6, {}}}},
      {"Release", {{1, {}}}},
      {"Reserve",
       {{1, {Rule::kName, Name::kReservation}}, {2, {}}, {3, {}}, {4, {Rule::kAnything}}}},
      {"Commit", {{1, {}}, {2, {}}}},
      {"Abort", {}},
      {"Pin", {{1, {Rule::kName, Name::kPin}}, {2, {}}, {3, {}}}},
      {"Unpin", {}}};
  return *answers;
}
// Where requests name what an earlier answer gave. All name the session in field 1.
const std::map<std::string, std::map<int, Name>>& Named() {
  static const auto* const named = new std::map<std::string, std::map<int, Name>>{
      {"Lookup", {{2, Name::kNamespace}}},
      {"Load", {{2, Name::kNamespace}}},
      {"Reserve", {{2, Name::kNamespace}}},
      {"Commit", {{2, Name::kReservation}, {5, Name::kNamespace}}},
      {"Abort", {{2, Name::kReservation}}},
      {"Pin", {{2, Name::kNamespace}}},
      {"Unpin", {{2, Name::kPin}}}};
  return *named;
}
const std::map<std::string, int>& ReleasesField() {
  static const auto* const fields = new std::map<std::string, int>{
      {"Lookup", 8}, {"Load", 7}, {"Release", 2}, {"Reserve", 8}, {"Commit", 11}};
  return *fields;
}

uint64_t NumberAt(std::string_view bytes, size_t offset, size_t size) {
  uint64_t number = 0;
  if (offset + size <= bytes.size()) std::memcpy(&number, bytes.data() + offset, size);
  return number;
}
void SetNumberAt(std::string& bytes, size_t offset, size_t size, uint64_t number) {
  ASSERT_LE(offset + size, bytes.size());
  std::memcpy(bytes.data() + offset, &number, size);
}

class RecordedSessionTest : public testing::Test {
 protected:
  RecordedSessionTest() {
    auto daemon = DaemonProcess::Start();
    KVD_CHECK(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }

  // ---- what was recorded, as it must be said today ----------------------------------------------

  uint64_t Today(Name name, uint64_t recorded) const {
    const auto it = names_.find({name, recorded});
    if (it == names_.end()) ADD_FAILURE() << "nobody answered that number: " << recorded;
    return it == names_.end() ? recorded : it->second;
  }
  void Rename(UnknownField& field, Name name) const {
    if (field.type() == UnknownField::TYPE_VARINT) {
      field.set_varint(Today(name, field.varint()));
    } else if (field.fixed64() != 0) {
      field.set_fixed64(Today(name, field.fixed64()));
    }
  }
  std::string RenamePacked(std::string packed, Name name) const {
    for (size_t i = 0; i + 8 <= packed.size(); i += 8) {
      SetNumberAt(packed, i, 8, Today(name, NumberAt(packed, i, 8)));
    }
    return packed;
  }
  std::string RequestToday(const std::string& method, const std::string& recorded) const {
    UnknownFieldSet request;
    EXPECT_TRUE(request.ParseFromString(recorded));
    for (int i = 0; i < request.field_count(); ++i) {
      UnknownField& field = *request.mutable_field(i);
      if (field.number() == 1) field.set_length_delimited(token_);
      const auto named = Named().find(method);
      if (named != Named().end()) {
        const auto name = named->second.find(field.number());
        if (name != named->second.end()) Rename(field, name->second);
      }
      const auto releases = ReleasesField().find(method);
      if (releases == ReleasesField().end() || releases->second != field.number()) continue;
      UnknownFieldSet inner;
      EXPECT_TRUE(inner.ParseFromString(field.length_delimited()));
      for (int j = 0; j < inner.field_count(); ++j) {
        UnknownField& list = *inner.mutable_field(j);
        if (list.number() > 2) continue;
        list.set_length_delimited(
            RenamePacked(list.length_delimited(), list.number() == 1 ? Name::kHold : Name::kLease));
      }
      std::string bytes;
      EXPECT_TRUE(inner.SerializeToString(&bytes));
      field.set_length_delimited(bytes);
    }
    std::string bytes;
    EXPECT_TRUE(request.SerializeToString(&bytes));
    return bytes;
  }

  // ---- what is answered
  // ---------------------------------------------------------------------------

  static std::map<int, const UnknownField*> FieldsOf(const UnknownFieldSet& message) {
    std::map<int, const UnknownField*> fields;
    for (int i = 0; i < message.field_count(); ++i) {
      fields[message.field(i).number()] = &message.field(i);
    }
    return fields;
  }
  static bool Equal(const UnknownField& a, const UnknownField& b) {
    if (a.type() != b.type()) return false;
    switch (a.type()) {
      case UnknownField::TYPE_VARINT:
        return a.varint() == b.varint();
      case UnknownField::TYPE_FIXED64:
        return a.fixed64() == b.fixed64();
      case UnknownField::TYPE_LENGTH_DELIMITED:
        return a.length_delimited() == b.length_delimited();
      default:
        return false;
    }
  }
  void CompareAnswer(const std::string& method, const std::string& recorded,
                     const std::string& answered) {
    SCOPED_TRACE(absl::StrCat(method, " answered ", absl::BytesToHexString(answered), ", not ",
                              absl::BytesToHexString(recorded)));
    UnknownFieldSet then;
    UnknownFieldSet now;
    ASSERT_TRUE(then.ParseFromString(recorded));
    ASSERT_TRUE(now.ParseFromString(answered));
    const auto old_fields = FieldsOf(then);
    const auto new_fields = FieldsOf(now);
    ASSERT_TRUE(Answers().contains(method)) << method;
    for (const auto& [number, rule] : Answers().at(method)) {
      SCOPED_TRACE(absl::StrCat("field ", number));
      const auto before = old_fields.find(number);
      const auto after = new_fields.find(number);
      if (rule.what == Rule::kAnything) continue;
      // A field that is not there has its default, which is an answer as well.
      ASSERT_EQ(before == old_fields.end(), after == new_fields.end());
      if (before == old_fields.end()) continue;
      ASSERT_EQ(before->second->type(), after->second->type());
      if (rule.what == Rule::kEqual) {
        EXPECT_TRUE(Equal(*before->second, *after->second));
      } else if (rule.what == Rule::kExtents) {
        CompareExtents(before->second->length_delimited(), after->second->length_delimited());
      } else if (before->second->type() == UnknownField::TYPE_VARINT) {
        names_[{rule.name, before->second->varint()}] = after->second->varint();
      } else {
        names_[{rule.name, before->second->fixed64()}] = after->second->fixed64();
      }
    }
  }
  // 40 bytes each: region 4, generation 4, offset 8, stored length 4, length 4, codec 2, sum
  // algorithm 1, tier 1, sum 4, sum chunk 4.
  void CompareExtents(const std::string& recorded, const std::string& answered) {
    ASSERT_EQ(recorded.size(), answered.size());
    for (size_t at = 0; at < recorded.size(); at += 40) {
      names_[{Name::kRegion, NumberAt(recorded, at, 4)}] = NumberAt(answered, at, 4);
      EXPECT_EQ(recorded.substr(at + 16, 20), answered.substr(at + 16, 20)) << at;
      extents_.push_back(answered.substr(at, 40));
    }
  }

  // ---- the session socket
  // ---------------------------------------------------------------------------

  void SaySession(const RecordedEntry& said, const RecordedEntry& recorded) {
    std::string request = said.bytes;
    const uint64_t kind = NumberAt(request, request.size() == 32 ? 4 : 0, 4);
    if (kind == 1) {
      socket_ = *RawSession::Connect(daemon_->path());
      if (!token_.empty()) request.replace(16, 16, token_);  // The session before, if any.
    }
    if (kind == 3) SetNumberAt(request, 4, 4, Today(Name::kRegion, NumberAt(request, 4, 4)));
    ASSERT_EQ(send(socket_.get(), request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    std::string answer(4096, '\0');
    std::vector<UniqueFd> fds;
    const auto size =
        ReceiveMessage(socket_.get(), answer.data(), answer.size(), fds, absl::Now() + kPatience);
    ASSERT_TRUE(size.ok()) << size.status();
    answer.resize(*size);
    ASSERT_EQ(answer.size(), recorded.bytes.size());
    ASSERT_EQ(fds.size(), recorded.numbers.at(0));
    EXPECT_EQ(answer.substr(0, 8), recorded.bytes.substr(0, 8));  // Kind and status.
    if (kind == 1) {
      EXPECT_EQ(NumberAt(answer, 8, 4), NumberAt(recorded.bytes, 8, 4));  // Version.
      fill_bytes_ = NumberAt(answer, 8, 4) == 1 ? 24 : 32;
      token_ = answer.substr(16, 16);
    } else if (kind == 3) {
      EXPECT_EQ(NumberAt(answer, 8, 4), NumberAt(request, 4, 4));
      const uint64_t bytes = NumberAt(answer, 16, 8);
      regions_[NumberAt(request, 4, 4)] = {
          static_cast<const char*>(mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fds.at(0).get(), 0)),
          bytes};
    } else {
      EXPECT_EQ(NumberAt(answer, 8, 8), NumberAt(recorded.bytes, 8, 8));  // Bytes of staging.
      staging_bytes_ = NumberAt(answer, 8, 8);
      staging_ = static_cast<char*>(
          mmap(nullptr, staging_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fds.at(0).get(), 0));
      ASSERT_NE(staging_, MAP_FAILED);
      channel_ = std::move(fds.at(1));
      fcntl(channel_.get(), F_SETFL, 0);  // We wait for what is recorded.
    }
  }
  void SayFill(std::string request) {
    for (size_t at = 0; at < request.size(); at += fill_bytes_) {
      SetNumberAt(request, at, 8, Today(Name::kReservation, NumberAt(request, at, 8)));
    }
    ASSERT_EQ(send(channel_.get(), request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
  }
  // Replies come in order, however many in a message.
  void HearFills(const std::string& recorded) {
    while (heard_.size() < recorded.size()) {
      char bytes[4096];
      std::vector<UniqueFd> fds;
      const auto size =
          ReceiveMessage(channel_.get(), bytes, sizeof bytes, fds, absl::Now() + kPatience);
      ASSERT_TRUE(size.ok()) << size.status();
      heard_.append(bytes, *size);
    }
    EXPECT_EQ(heard_.substr(0, recorded.size()), recorded);  // Index, status, sum.
    heard_.erase(0, recorded.size());
  }
  void SayCall(const RecordedEntry& said, const std::string& recorded) {
    const std::string method = said.method.substr(said.method.rfind('/') + 1);
    const std::string request = RequestToday(method, said.bytes);
    const grpc::Slice slice(request);
    const grpc::ByteBuffer buffer(&slice, 1);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
    grpc::ByteBuffer reply;
    const grpc::internal::RpcMethod rpc(said.method.c_str(), grpc::internal::RpcMethod::NORMAL_RPC,
                                        channel());
    const grpc::Status status =
        grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
            channel().get(), rpc, &context, buffer, &reply);
    ASSERT_TRUE(status.ok()) << said.method << " " << status.error_message();
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(reply.Dump(&slices).ok());
    std::string answered;
    for (const grpc::Slice& part : slices) {
      answered.append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
    CompareAnswer(method, recorded, answered);
  }
  const std::shared_ptr<grpc::Channel>& channel() {
    if (grpc_ == nullptr) {
      grpc_ = grpc::CreateChannel(daemon_->endpoint(), grpc::InsecureChannelCredentials());
    }
    return grpc_;
  }

  // Says it all again. What was read is checked against what was staged where regions are mapped.
  void Replay(const std::vector<RecordedEntry>& entries) {
    for (size_t i = 0; i < entries.size() && !HasFatalFailure(); ++i) {
      const RecordedEntry& entry = entries[i];
      SCOPED_TRACE(absl::StrCat("entry ", i, ": ", entry.word));
      if (entry.word == "session>") {
        ASSERT_LT(i + 1, entries.size());
        SaySession(entry, entries[++i]);
      } else if (entry.word == "stage") {
        ASSERT_LE(entry.numbers.at(0) + entry.numbers.at(1), staging_bytes_);
        std::memset(staging_ + entry.numbers.at(0), static_cast<int>(entry.numbers.at(2)),
                    entry.numbers.at(1));
        staged_.insert(static_cast<char>(entry.numbers.at(2)));
      } else if (entry.word == "fill>") {
        SayFill(entry.bytes);
      } else if (entry.word == "fill<") {
        HearFills(entry.bytes);
      } else if (entry.word == "call") {
        ASSERT_LT(i + 1, entries.size());
        SayCall(entry, entries[++i].bytes);
        said_.insert(entry.method.substr(entry.method.rfind('/') + 1));
      }
    }
    size_t read = 0;
    for (const std::string& extent : extents_) {
      const auto region = regions_.find(NumberAt(extent, 0, 4));
      if (region == regions_.end()) continue;
      const uint64_t offset = NumberAt(extent, 8, 8);
      const uint64_t length = NumberAt(extent, 16, 4);
      ASSERT_LE(offset + length, region->second.second);
      const char* bytes = region->second.first + offset;
      EXPECT_TRUE(staged_.contains(bytes[0]));
      for (uint64_t at = 0; at < length; ++at) ASSERT_EQ(bytes[at], bytes[0]) << at;
      ++read;
    }
    EXPECT_GT(read, 0u);
  }

  std::unique_ptr<DaemonProcess> daemon_;
  UniqueFd socket_;
  UniqueFd channel_;
  std::shared_ptr<grpc::Channel> grpc_;
  std::string token_;
  char* staging_ = nullptr;
  uint64_t staging_bytes_ = 0;
  size_t fill_bytes_ = 0;  // Of a fill request.
  std::string heard_;      // Of fill replies, not compared yet.
  std::map<std::pair<Name, uint64_t>, uint64_t> names_;
  std::map<uint64_t, std::pair<const char*, uint64_t>> regions_;  // Mapped.
  std::vector<std::string> extents_;
  std::set<char> staged_;
  std::set<std::string> said_;  // Methods.
};

// All that a client library does, with the least that makes it do so.
void LiveAClientsLife(const std::string& endpoint) {
  Client client({.endpoint = endpoint, .timeout = kPatience, .staging_bytes = 4u << 20});
  const auto put = [&](const Namespace& ns, int first, int count, uint32_t part_bytes) {
    std::vector<std::vector<std::byte>> memory;
    std::vector<absl::Span<const std::byte>> sources;
    for (int i = 0; i < count; ++i) memory.emplace_back(part_bytes, std::byte(0x11 + first + i));
    for (const auto& part : memory) sources.push_back(part);
    const PutResult result = client.Put(ns, TestKeys(first, count), sources);
    KVD_CHECK(result.status.ok()) << result.status;
    return result.stored;
  };
  constexpr uint32_t kSmall = 16 << 10;
  constexpr uint32_t kLarge = 1 << 20;
  NamespaceDescriptor model = TestModel(kSmall);
  model.weights_revision = "r1";
  model.kv_dtype = "fp8";
  model.extra["lora"] = "none";
  const Namespace small = *client.RegisterNamespace(model);
  const Namespace large = *client.RegisterNamespace(TestModel(kLarge));
  KVD_CHECK(put(small, 0, 3, kSmall) == 3);  // In one call.
  KVD_CHECK(put(large, 0, 2, kLarge) == 2);  // Reserve, fill, commit.
  KVD_CHECK(put(large, 0, 3, kLarge) == 1);  // Two are there.

  KVD_CHECK(client.Lookup(small, TestKeys(100, 2)).hit_blocks == 0);
  const LookupResult hit = client.Lookup(small, TestKeys(0, 4), {.lease = absl::Minutes(5)});
  KVD_CHECK(hit.hit_blocks == 3 && hit.lease_id != 0);
  {
    LoadResult load = client.Load(large, TestKeys(0, 3));
    KVD_CHECK(load.chain.blocks() == 3);
    for (uint32_t i = 0; i < 3; ++i) KVD_CHECK(load.chain.Verify(i, 0));
  }
  client.ReleaseLease(hit.lease_id);
  KVD_CHECK(client.Flush().ok());
  std::vector<std::vector<std::byte>> memory(3, std::vector<std::byte>(kSmall));
  std::vector<absl::Span<std::byte>> targets;
  for (auto& part : memory) targets.push_back(absl::MakeSpan(part));
  KVD_CHECK(client.Get(small, TestKeys(0, 3), targets).blocks == 3);
  const auto pin = client.Pin(small, TestKey(2),
                              {.owner = "test", .budget_bytes = 1u << 20, .ttl = absl::Hours(1)});
  KVD_CHECK(pin.ok()) << pin.status();
  KVD_CHECK(client.Unpin(pin->pin_id).ok());
  KVD_CHECK(client.Flush().ok());
}

TEST_F(RecordedSessionTest, AClientOfProtocolVersion1IsAnsweredAsItWas) {
  const auto entries = ReadRecording(KVD_RECORDED_FOLDER "/client_v1.txt");
  ASSERT_TRUE(entries.ok()) << entries.status();
  Replay(*entries);
  EXPECT_EQ(said_, (std::set<std::string>{"RegisterNamespace", "Lookup", "Load", "Release",
                                          "Reserve", "Commit", "Pin", "Unpin"}));
  const v1::AuditReply audit = daemon_->Audit();
  EXPECT_EQ(audit.errors(), 0u) << audit.first_error();
  EXPECT_EQ(audit.blocks(), 6u);
}

// The client of today: what it says can be recorded and said again. With KVD_RECORD_SESSION=FILE
// the recording is kept.
TEST_F(RecordedSessionTest, TheClientOfTodayCanBeRecorded) {
  std::vector<RecordedEntry> entries;
  {
    auto daemon = DaemonProcess::Start();
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    TestFolder folder;
    SessionRecorder recorder(folder.path() + "/kvd", (*daemon)->path());
    LiveAClientsLife("unix:" + folder.path() + "/kvd");
    entries = recorder.entries();
  }
  if (const char* file = std::getenv("KVD_RECORD_SESSION"); file != nullptr) {
    WriteRecording(
        file,
        "# What a client said and was answered, of the version in its welcome. Recorded by\n"
        "# recorded_session_test, see README.md here. Never edited.\n",
        entries);
  }
  Replay(entries);
}

}  // namespace
}  // namespace kvd
