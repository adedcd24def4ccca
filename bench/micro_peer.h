// The processes that `micro` measures against or beside: bare echoes, and a client that sends the
// largest calls without pause. They run in processes of their own, as a daemon and its clients do;
// the hidden subcommand micro-peer of kvd-bench is how they are started.
//
// Threads: one at a time. Children end with the thread that started them.

#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/child_process.h"
#include "proto/kvd.grpc.pb.h"

namespace kvd {

// Answers kvd.v1.Engine/Lookup with a constant reply of 40 bytes for each of `extent_blocks`, and
// does nothing else: what gRPC costs for the same bytes. An asynchronous server of one thread and
// one queue, as the daemon is.
class GrpcEcho {
 public:
  static absl::StatusOr<std::unique_ptr<GrpcEcho>> Start(const std::string& folder);

  pid_t pid() const { return process_->pid(); }
  // One blocking call on one channel that is as the client's.
  absl::Status Call(const v1::LookupRequest& request, v1::LookupReply& reply);

 private:
  GrpcEcho(std::unique_ptr<ChildProcess> process, std::unique_ptr<v1::Engine::Stub> stub)
      : process_(std::move(process)), stub_(std::move(stub)) {}

  const std::unique_ptr<ChildProcess> process_;
  const std::unique_ptr<v1::Engine::Stub> stub_;
};

// Answers each message of a Unix seqpacket socket with its first bytes: what waking another process
// costs, twice.
class SeqpacketEcho {
 public:
  static absl::StatusOr<std::unique_ptr<SeqpacketEcho>> Start(const std::string& folder);
  ~SeqpacketEcho();
  SeqpacketEcho(const SeqpacketEcho&) = delete;
  SeqpacketEcho& operator=(const SeqpacketEcho&) = delete;

  pid_t pid() const { return process_->pid(); }
  // Requires: 4 <= request.size(), which is overwritten; reply_bytes <= request.size().
  absl::Status Call(std::string& request, uint32_t reply_bytes);

 private:
  SeqpacketEcho(std::unique_ptr<ChildProcess> process, int fd)
      : process_(std::move(process)), fd_(fd) {}

  const std::unique_ptr<ChildProcess> process_;
  const int fd_;
};

// A client of the daemon at `endpoint` that loads 2,048 blocks and puts 2,048 new ones in turn,
// until it is killed. It starts stopped; Run() and Pause() say when.
class Hog {
 public:
  static absl::StatusOr<std::unique_ptr<Hog>> Start(const std::string& endpoint);

  pid_t pid() const { return process_->pid(); }
  void Run() const;
  // Returns when the daemon has had time to finish what was under way.
  void Pause() const;

 private:
  explicit Hog(std::unique_ptr<ChildProcess> process) : process_(std::move(process)) {}

  const std::unique_ptr<ChildProcess> process_;
};

}  // namespace kvd
