// The two streams of kvd.v1.Transfer. Each runs on the thread of its call from its first message to
// its last, and leaves nothing behind: holds and leases of a Get, and the reservation of a Put that
// did not come to its end, are given back by the function that took them.
//
// Threads: any number of them, of the gateway's server.

#pragma once

#include <grpcpp/grpcpp.h>

#include "daemon/copier_pool.h"
#include "daemon/gateway_sessions.h"
#include "daemon/inbox.h"
#include "proto/stream.grpc.pb.h"
#include "proto/types/verified_copy.h"

namespace kvd {

// What every stream needs. All of it outlives the stream.
struct StreamContext {
  Inbox& inbox;
  CopierPool& copiers;
  const Copier& copier;
  grpc::ServerContext& call;
  GatewaySessionPtr session;
};

grpc::Status StreamGet(const StreamContext& context, const v1::GetRequest& request,
                       grpc::ServerWriter<v1::GetChunk>& writer);

// `start` has been read already.
grpc::Status StreamPut(const StreamContext& context, const v1::PutStart& start,
                       grpc::ServerReader<v1::PutChunk>& reader, v1::PutReply& reply);

}  // namespace kvd
