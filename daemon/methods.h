// What each method of the engine-facing service means, without a queue or a connection: messages
// in, plain structs of requests.h to the control thread, messages out. The service runs these; so
// do the fuzzers.
//
// Run(control, request, state, reply) is called until it answers neither kMore nor kWait. The first
// call finds a fresh `state`, which holds the plain struct; `request` must outlive it.
//
// Unheard(control, request, state), where there is one, takes back what an answer that could not be
// sent has given: nobody knows the number of that hold, lease, pin or reservation.
//
// Threads: the control thread. Errors: those of kvd.proto; messages name the field.

#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/control.h"
#include "daemon/requests.h"
#include "proto/kvd.pb.h"

namespace kvd {

struct RegisterNamespaceMethod {
  using Request = v1::RegisterNamespaceRequest;
  using Reply = v1::RegisterNamespaceReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
};

struct LookupMethod {
  using Request = v1::LookupRequest;
  using Reply = v1::LookupReply;
  struct State : LookupCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
  static void Unheard(Control& control, const Request& request, const State& state);
};

struct LoadMethod {
  using Request = v1::LoadRequest;
  using Reply = v1::LoadReply;
  struct State : LoadCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
  static void Unheard(Control& control, const Request& request, const State& state);
};

struct ReleaseMethod {
  using Request = v1::ReleaseRequest;
  using Reply = v1::ReleaseReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
};

struct ReserveMethod {
  using Request = v1::ReserveRequest;
  using Reply = v1::ReserveReply;
  struct State : ReserveCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
  static void Unheard(Control& control, const Request& request, const State& state);
};

struct CommitMethod {
  using Request = v1::CommitRequest;
  using Reply = v1::CommitReply;
  struct State : CommitCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
};

struct AbortMethod {
  using Request = v1::AbortRequest;
  using Reply = v1::AbortReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
};

struct PinMethod {
  using Request = v1::PinRequest;
  using Reply = v1::PinReply;
  struct State {
    LeaseId pin_id = 0;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
  static void Unheard(Control& control, const Request& request, const State& state);
};

struct UnpinMethod {
  using Request = v1::UnpinRequest;
  using Reply = v1::UnpinReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
};

struct HintMethod {
  using Request = v1::HintRequest;
  using Reply = v1::HintReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& state,
                                  Reply& reply);
};

// On the wire, and not in this version.
template <typename RequestType, typename ReplyType>
struct UnimplementedMethod {
  using Request = RequestType;
  using Reply = ReplyType;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply&) {
    if (absl::Status status = control.CheckSession(request.session()); !status.ok()) return status;
    return absl::UnimplementedError("not in this version");
  }
};

}  // namespace kvd
