#include "bench/crash_daemon.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/admin_caller.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr absl::Duration kCallTimeout = absl::Seconds(5);

}  // namespace

CrashDaemon::CrashDaemon(Options options)
    : options_(std::move(options)),
      memory_folder_("/dev/shm/" + std::filesystem::path(options_.folder).filename().string() +
                     ".arena") {
  std::error_code error;  // The daemon says what is wrong with it.
  std::filesystem::create_directory(memory_folder_, error);
}

CrashDaemon::~CrashDaemon() {
  if (process_ != nullptr) process_->Kill();
  std::error_code error;
  std::filesystem::remove_all(memory_folder_, error);
}

absl::Status CrashDaemon::Start(const std::string& kill_at) {
  DaemonProcess::Options options{
      .program = options_.program, .start_timeout = kStartTimeout, .folder = options_.folder};
  // No calibration, which takes longer than all the rest of a start.
  options.arguments = {"--dram",
                       absl::StrCat(options_.dram_bytes),
                       "--copy-loop",
                       "plain",
                       "--copiers",
                       "1",
                       "--log-level",
                       "info",
                       "--drain-timeout",
                       "2s",
                       "--data",
                       data_folder(),
                       "--arena-directory",
                       memory_folder_};
  if (options_.nvme_bytes > 0) {
    options.arguments.insert(
        options.arguments.end(),
        {"--nvme", absl::StrCat(nvme_path(), ":", options_.nvme_bytes), "--admission", "all"});
  }
  options.arguments.insert(options.arguments.end(), options_.more_arguments.begin(),
                           options_.more_arguments.end());
  if (!kill_at.empty()) options.arguments.insert(options.arguments.end(), {"--kill-at", kill_at});
  const absl::Time begin = absl::Now();
  absl::StatusOr<std::unique_ptr<DaemonProcess>> process = DaemonProcess::Start(options);
  if (!process.ok()) return process.status();
  start_ms_ = absl::ToDoubleMilliseconds(absl::Now() - begin);
  process_ = *std::move(process);
  endpoint_ = process_->endpoint();
  operator_ = std::make_unique<AdminCaller>(endpoint_, kCallTimeout);
  return absl::OkStatus();
}

void CrashDaemon::Kill() {
  process_->Kill();
  process_.reset();
  operator_.reset();
}

absl::Status CrashDaemon::Stop() {
  const absl::Status status = process_->Stop();
  process_.reset();
  operator_.reset();
  return status;
}

std::string CrashDaemon::arena_folder() const {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(memory_folder_, error)) {
    return entry.path();
  }
  return "";
}

void CrashDaemon::RemoveArena() {
  std::error_code error;
  if (const std::string folder = arena_folder(); !folder.empty()) {
    std::filesystem::remove_all(folder, error);
  }
}

void CrashDaemon::RemoveAll() {
  RemoveArena();
  std::error_code error;
  std::filesystem::remove_all(data_folder(), error);
  std::filesystem::remove(nvme_path(), error);
}

absl::StatusOr<uint32_t> CrashDaemon::NumberOf(CrashNamespace ns) {
  v1::NamespacesReply reply;
  absl::Status status =
      operator_->Ask("namespaces", &v1::Admin::Stub::Namespaces, v1::NamespacesRequest(), reply);
  if (!status.ok()) return status;
  const std::string model = CrashDescriptor(ns).model;
  for (const v1::NamespaceStatus& known : reply.namespaces()) {
    if (known.describes().model() == model) return known.namespace_id();
  }
  return absl::NotFoundError(absl::StrCat("no namespace of ", model));
}

absl::StatusOr<uint64_t> CrashDaemon::Evict(const Block& top) {
  v1::EvictRequest request;
  request.set_namespace_id(top.ns);
  request.set_key(top.key);
  v1::EvictReply reply;
  const absl::Status status = operator_->Ask("evict", &v1::Admin::Stub::Evict, request, reply);
  if (!status.ok()) return status;
  return reply.kept_blocks();
}

absl::Status CrashDaemon::Drop(CrashNamespace ns) {
  const absl::StatusOr<uint32_t> number = NumberOf(ns);
  if (!number.ok()) return number.status();
  v1::DropNamespaceRequest request;
  request.set_namespace_id(*number);
  v1::DropNamespaceReply reply;
  absl::Status status = operator_->Ask("drop", &v1::Admin::Stub::DropNamespace, request, reply);
  if (status.ok() && !reply.dropped()) {
    status = absl::FailedPreconditionError("drop: some of it is held");
  }
  return status;
}

absl::StatusOr<std::vector<CrashDaemon::Block>> CrashDaemon::Blocks() {
  std::vector<Block> blocks;
  v1::BlocksRequest request;
  request.set_limit(10'000);
  do {
    v1::BlocksReply reply;
    absl::Status status = operator_->Ask("blocks", &v1::Admin::Stub::Blocks, request, reply);
    if (!status.ok()) return status;
    for (const v1::BlockStatus& block : reply.blocks()) {
      blocks.push_back({.ns = block.namespace_id(),
                        .key = block.key(),
                        .root = block.parent().empty(),
                        .dram_bytes = block.bytes(),
                        .nvme_bytes = block.nvme_bytes()});
    }
    request.set_cursor(reply.next_cursor());
  } while (request.cursor() != 0);
  return blocks;
}

absl::StatusOr<bool> CrashDaemon::HasMadeRoom() {
  v1::StatusReply reply;
  const absl::Status status =
      operator_->Ask("status", &v1::Admin::Stub::Status, v1::StatusRequest(), reply);
  if (!status.ok()) return status;
  return std::none_of(reply.counters().begin(), reply.counters().end(), [](const auto& counter) {
    return counter.value() > 0 &&
           (counter.name() == "nvme_moves" || counter.name() == "withheld_parts");
  });
}

absl::Status CrashDaemon::Audit() {
  v1::AuditReply reply;
  if (absl::Status status =
          operator_->Ask("audit", &v1::Admin::Stub::Audit, v1::AuditRequest(), reply);
      !status.ok()) {
    return status;
  }
  if (reply.errors() > 0) {
    return absl::InternalError(absl::StrCat("the index does not add up: ", reply.first_error()));
  }
  if (reply.stranded_blocks() > 0) {
    return absl::InternalError(absl::StrCat(reply.stranded_blocks(), " blocks are stranded"));
  }
  return absl::OkStatus();
}

}  // namespace kvd
