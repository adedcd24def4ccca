// kvd.v1.Engine/Watch: where the blocks of a domain are, as a stream (kvd.proto says what its
// messages mean). It follows the daemon's events at its reader's pace; one that falls behind what
// is remembered gets everything anew.
//
// Threads: the call's, which it keeps until the call, the session or the daemon ends.

#pragma once

#include <grpcpp/grpcpp.h>

#include "daemon/events.h"
#include "daemon/gateway_sessions.h"
#include "daemon/inbox.h"
#include "proto/kvd.grpc.pb.h"

namespace kvd {

grpc::Status StreamWatch(Inbox& inbox, EventRing& events, const grpc::ServerContext& call,
                         const GatewaySession& session, const v1::WatchRequest& request,
                         grpc::ServerWriter<v1::WatchEvent>& writer);

}  // namespace kvd
