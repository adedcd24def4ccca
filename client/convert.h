// Between the wire's messages and our nouns, for the client. Pure.

#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/release_queue.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"
#include "proto/kvd.pb.h"
#include "proto/types/block.h"
#include "proto/types/namespace_descriptor.h"
#include "proto/types/view.h"

namespace kvd {

v1::NamespaceDescriptor ToProto(const NamespaceDescriptor& descriptor);
v1::Releases ToProto(const Owed& owed);
// Group and shard, a byte each.
std::string PackParts(absl::Span<const PartId> parts);
// The codes of gRPC and of Abseil are the same canonical ones.
absl::Status ToAbsl(const grpc::Status& status);
// How a call ended: the same, and whether it was a draining daemon that refused it.
absl::Status EndOf(const grpc::ClientContext& context, const grpc::Status& status);
// The daemon drains: it says no to this call, and the session goes on.
bool IsDraining(const absl::Status& status);

}  // namespace kvd
