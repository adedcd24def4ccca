// Pins: leases with an owner, a budget and a time to live.

#include "absl/time/clock.h"
#include "client/client_impl.h"
#include "proto/types/limits.h"

namespace kvd {

using v1::Engine;

absl::StatusOr<PinResult> Client::Impl::Pin(const Namespace& ns, std::string_view key,
                                            const PinOptions& options) {
  const absl::Time deadline = DeadlineOf(options.timeout);
  const absl::StatusOr<const KnownNamespace*> known = Find(ns);
  if (!known.ok()) return known.status();
  const absl::StatusOr<uint32_t> count = CountKeys(**known, key, 1);
  if (!count.ok()) return count.status();
  if (options.owner.empty() || options.owner.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError("owner: must be 1 to 256 bytes");
  }
  const absl::StatusOr<uint32_t> ttl_ms = Milliseconds(options.ttl, kMaxPinMs, "ttl");
  if (!ttl_ms.ok()) return ttl_ms.status();
  if (*ttl_ms == 0) return absl::InvalidArgumentError("ttl: must be longer than zero");

  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return link.status();
  const absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return id.status();
  v1::PinRequest request;
  request.set_namespace_id(*id);
  request.set_key(key.data(), key.size());
  request.set_owner(options.owner);
  request.set_budget_bytes(options.budget_bytes);
  request.set_ttl_ms(*ttl_ms);
  v1::PinReply reply;
  absl::Status status = CallToGet<PendingPin>(
      *link, &Engine::Stub::AsyncPin, request, &reply, deadline,
      [this](Link& late, const v1::PinReply& answer) {
        v1::UnpinRequest unpin;
        unpin.set_pin_id(answer.pin_id());
        v1::UnpinReply ignored;
        Call(late, &Engine::Stub::Unpin, unpin, &ignored, absl::Now() + kLateAnswer).IgnoreError();
      });
  if (!status.ok()) return status;
  return PinResult{reply.pin_id(), reply.blocks(), reply.bytes()};
}

absl::Status Client::Impl::Unpin(uint64_t pin_id, absl::Duration timeout) {
  const absl::Time deadline = DeadlineOf(timeout);
  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return link.status();
  v1::UnpinRequest request;
  request.set_pin_id(pin_id);
  v1::UnpinReply reply;
  return Call(**link, &Engine::Stub::Unpin, request, &reply, deadline);
}

}  // namespace kvd
