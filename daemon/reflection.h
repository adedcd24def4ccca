// gRPC server reflection, so that grpcurl and the like need no .proto file.
//
// gRPC brings one of its own, in a library that adds it to every server of the process as soon as
// it is loaded: the engines' server would get threads and queues that poll its connections beside
// the control thread. So this is ours; it answers from the descriptors that are linked in.
//
// Threads: gRPC's; no call keeps one.

#pragma once

#include <string>
#include <vector>

#include "proto/reflection.grpc.pb.h"

namespace kvd {

class Reflection final : public grpc::reflection::v1alpha::ServerReflection::CallbackService {
 public:
  // `services`: the full names that this server lists.
  explicit Reflection(std::vector<std::string> services) : services_(std::move(services)) {}

  grpc::ServerBidiReactor<grpc::reflection::v1alpha::ServerReflectionRequest,
                          grpc::reflection::v1alpha::ServerReflectionResponse>*
  ServerReflectionInfo(grpc::CallbackServerContext* call) override;

 private:
  const std::vector<std::string> services_;
};

}  // namespace kvd
