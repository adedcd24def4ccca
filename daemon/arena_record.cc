#include "daemon/arena_record.h"

#include <utility>

namespace kvd {
namespace {

constexpr size_t kGivenBackPerTurn = 4096;  // Some hundred microseconds.

}  // namespace

ArenaRecord::ArenaRecord(SlotTable& table, Store& store,
                         std::function<std::string(DomainId)> domain_name)
    : table_(table), store_(store), domain_name_(std::move(domain_name)) {}

void ArenaRecord::PartCommitted(const Block& block, const ChainHash* parent, const Part& part) {
  const uint32_t scope = block.ns < scopes_.size() ? scopes_[block.ns] : SlotTable::kNone;
  const bool recorded = scope != SlotTable::kNone &&
                        table_.Put({.state = SlotState::kStored,
                                    .id = part.id,
                                    .has_parent = parent != nullptr,
                                    .region = part.region,
                                    .slot = part.slot,
                                    .scope = scope,
                                    .depth = block.depth,
                                    .length = part.length,
                                    .generation = part.generation,
                                    .sum = part.sum,
                                    .key = block.key,
                                    .parent = parent != nullptr ? *parent : ChainHash{}});
  if (!recorded) ++unrecorded_parts_;
}

void ArenaRecord::PartQuarantined(const Part& part) { table_.Quarantine(part.region, part.slot); }

void ArenaRecord::RoomFreed(const Part& part) { table_.Clear(part.region, part.slot); }

void ArenaRecord::NamespaceAdded(NamespaceId ns, DomainId domain,
                                 const NamespaceDescriptor& descriptor) {
  if (scopes_.size() <= ns) scopes_.resize(ns + 1, SlotTable::kNone);
  scopes_[ns] = table_.AddScope({domain_name_(domain), descriptor.Canonical()});
}

void ArenaRecord::NamespaceDropped(NamespaceId ns) {
  if (scopes_[ns] != SlotTable::kNone) table_.RemoveScope(scopes_[ns]);
  scopes_[ns] = SlotTable::kNone;
}

uint32_t ArenaRecord::SessionOpened(const ReaderRow& session) { return table_.AddSession(session); }

void ArenaRecord::SessionOver(uint32_t number) {
  if (number != SlotTable::kNone) table_.RemoveSession(number);
}

void ArenaRecord::Withhold(std::map<uint32_t, ReaderRow> readers, std::vector<PartRef> parts,
                           std::vector<Room> rooms) {
  readers_ = std::move(readers);
  parts_ = std::move(parts);
  rooms_ = std::move(rooms);
  if (readers_.empty()) parts_.clear();
  for (const PartRef part : parts_) store_.residency().Hold(part);
  reader_count_ = readers_.size();
  withheld_ = parts_.size() + rooms_.size();
}

void ArenaRecord::Forget(std::map<uint32_t, ReaderRow>::iterator reader) {
  table_.RemoveSession(reader->first);
  readers_.erase(reader);
  reader_count_ = readers_.size();
}

void ArenaRecord::ReaderEnded(uint32_t number) {
  if (const auto reader = readers_.find(number); reader != readers_.end()) Forget(reader);
}

void ArenaRecord::ReaderFinished(const SessionToken& token, pid_t pid) {
  for (auto reader = readers_.begin(); reader != readers_.end(); ++reader) {
    if (reader->second.token != token || reader->second.pid != pid) continue;
    Forget(reader);
    return;
  }
}

void ArenaRecord::Poll() {
  if (!busy()) return;
  size_t turn = kGivenBackPerTurn;
  for (; turn > 0 && !parts_.empty(); --turn) {
    store_.residency().Unhold(parts_.back());
    parts_.pop_back();
  }
  for (; turn > 0 && !rooms_.empty(); --turn) {
    table_.Clear(rooms_.back().region, rooms_.back().slot);
    store_.arena().Give(rooms_.back().region, rooms_.back().slot);
    rooms_.pop_back();
  }
  withheld_ = parts_.size() + rooms_.size();
}

}  // namespace kvd
