// Rows of the control thread's tables (daemon/operator.h) as messages of admin.proto.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "daemon/operator.h"
#include "daemon/quarantine.h"
#include "proto/admin.pb.h"

namespace kvd {

// What people call a domain. Safe from any thread.
using DomainName = std::function<std::string(DomainId)>;

void Write(const SessionRow& row, const DomainName& name, v1::SessionStatus& out);
void Write(const LeaseRow& row, const DomainName& name, v1::LeaseStatus& out);
void Write(const NamespaceRow& row, const DomainName& name, v1::NamespaceStatus& out);
void Write(const BlockRow& row, const DomainName& name, v1::BlockStatus& out);
void Write(const DomainRow& row, const DomainName& name, v1::DomainUse& out);

// `key_bytes`: the length of one key of its namespace.
void Write(const Quarantined& entry, uint32_t key_bytes, uint64_t unix_ms, const DomainName& name,
           v1::QuarantineEntry& out);

// Without its sequence number and time. `key_bytes`: the length of one key of its namespace.
void Write(const Event& event, uint32_t key_bytes, const DomainName& name, v1::Event& out);

// What an operator should look at, from what a complete status says. Codes are stable.
void AddProblems(v1::StatusReply& status, uint64_t capacity_bytes);

}  // namespace kvd
