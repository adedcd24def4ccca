// The public functions: each forwards to Client::Impl, and none throws.

#include "client/client.h"

#include <exception>
#include <type_traits>
#include <utility>

#include "client/client_impl.h"

namespace kvd {
namespace {

// Runs `call` and turns an exception of a library (std::bad_alloc, in practice) into a status.
template <typename Result, typename Callable>
Result NoThrow(Callable call) {
  absl::Status status;
  try {
    return call();
  } catch (const std::exception& error) {
    status = absl::ResourceExhaustedError(error.what());
  }
  if constexpr (std::is_constructible_v<Result, absl::Status>) {
    return Result(std::move(status));
  } else {
    Result result;
    result.status = std::move(status);
    return result;
  }
}

}  // namespace

Client::Client(ClientOptions options) : impl_(std::make_shared<Impl>(std::move(options))) {}
Client::~Client() { impl_->Shutdown(); }

absl::StatusOr<Namespace> Client::RegisterNamespace(const NamespaceDescriptor& descriptor,
                                                    absl::Duration timeout) {
  return NoThrow<absl::StatusOr<Namespace>>(
      [&] { return impl_->RegisterNamespace(descriptor, timeout); });
}
LookupResult Client::Lookup(const Namespace& ns, std::string_view keys,
                            const LookupOptions& options) {
  return NoThrow<LookupResult>([&] { return impl_->Lookup(ns, keys, options); });
}
LoadResult Client::Load(const Namespace& ns, std::string_view keys, const LoadOptions& options) {
  return NoThrow<LoadResult>([&] { return impl_->Load(ns, keys, options, impl_); });
}
GetResult Client::Get(const Namespace& ns, std::string_view keys,
                      absl::Span<const absl::Span<std::byte>> targets, const GetOptions& options) {
  return NoThrow<GetResult>([&] { return impl_->Get(ns, keys, targets, options); });
}
PutResult Client::Put(const Namespace& ns, std::string_view keys,
                      absl::Span<const absl::Span<const std::byte>> sources,
                      const PutOptions& options) {
  return NoThrow<PutResult>([&] { return impl_->Put(ns, keys, sources, options); });
}
absl::Status Client::AdoptMemory(int fd, absl::Span<const std::byte> memory,
                                 absl::Duration timeout) {
  return NoThrow<absl::Status>([&] { return impl_->AdoptMemory(fd, memory, timeout); });
}
void Client::ReleaseLease(uint64_t lease_id) { impl_->releases().AddLease(lease_id); }
absl::Status Client::Flush(absl::Duration timeout) {
  return NoThrow<absl::Status>([&] { return impl_->Flush(timeout); });
}
absl::Status Client::Connect(absl::Duration timeout) {
  return NoThrow<absl::Status>([&] { return impl_->Connect(timeout); });
}
absl::StatusOr<PinResult> Client::Pin(const Namespace& ns, std::string_view key,
                                      const PinOptions& options) {
  return NoThrow<absl::StatusOr<PinResult>>([&] { return impl_->Pin(ns, key, options); });
}
absl::Status Client::Unpin(uint64_t pin_id, absl::Duration timeout) {
  return NoThrow<absl::Status>([&] { return impl_->Unpin(pin_id, timeout); });
}
const std::string& Client::copy_loops() const { return impl_->copier().description(); }
ClientStats Client::stats() const { return impl_->stats(); }

}  // namespace kvd
