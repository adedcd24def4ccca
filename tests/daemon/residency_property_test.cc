// The index against a naive model, by random operations: forests with branches, several groups and
// shards, equal keys in several namespaces, holes made by damage, producers that give up, leases,
// holds and evictions; in two of three runs with a second tier: records that are written, read,
// lost and recovered. KVD_PROPERTY_OPS says how many, KVD_SEED replays a failure.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "daemon/residency.h"
#include "policy/lru.h"
#include "tests/testing/checking_policy.h"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

using Random = std::mt19937_64;

ChainHash HashOf(uint64_t key) {
  ChainHash hash;
  for (size_t word = 0; word < 4; ++word) {
    const uint64_t mixed = (key + 1 + word) * 0x9e3779b97f4a7c15u;
    std::memcpy(hash.bytes.data() + 8 * word, &mixed, 8);
  }
  return hash;
}

std::string Packed(const std::vector<uint64_t>& keys) {
  std::string packed;
  for (const uint64_t key : keys) {
    const ChainHash hash = HashOf(key);
    packed.append(reinterpret_cast<const char*>(hash.bytes.data()), hash.bytes.size());
  }
  return packed;
}

// Knows which rooms are out, and that each comes back once and under no hold.
class CountingRoom final : public RoomOwner {
 public:
  uint32_t Take() {
    out_.insert(++next_);
    return next_;
  }
  void FreeRoom(const Part& part) override {
    ASSERT_EQ(out_.erase(part.slot), 1u) << part.slot;
    ASSERT_EQ(part.holds, 0u) << "held room was given back";
  }
  size_t out() const { return out_.size(); }

  // Records have places of their own; each dies once, and not while somebody is at it.
  RecordPlace TakeRecord() {
    records_.insert(++next_);
    return {.segment = next_};
  }
  void FreeRecord(const ColdPart& cold) override {
    ASSERT_EQ(records_.erase(cold.place.segment), 1u) << cold.place.segment;
    ASSERT_EQ(cold.readers, 0u);
    ASSERT_EQ(cold.state, ColdState::kCommitted);
  }
  void NoRecord(RecordPlace place) { records_.erase(place.segment); }  // Its write failed.
  size_t records() const { return records_.size(); }

 private:
  uint32_t next_ = 0;
  std::set<uint32_t> out_;
  std::set<uint32_t> records_;
};

constexpr int kNone = -1;
constexpr uint64_t kGarbage = 1u << 30;  // A key that is never stored.

struct ModelPart {
  PartId id;
  PartRef ref = 0;
  uint32_t holds = 0;
  bool committed = false;
};

struct ModelCold {
  PartId id;
  ColdRef ref = 0;
  uint32_t readers = 0;
  bool committed = false;

  bool busy() const { return !committed || readers > 0; }
};

struct Node {
  BlockState state = BlockState::kFree;
  std::vector<int> children;
  std::vector<ModelPart> parts;
  std::vector<ModelCold> colds;
  uint32_t leases = 0;
};

// What the index should be: the words of residency.h, carried out the slow way.
class Model {
 public:
  Model(std::vector<NamespaceShape> shapes, std::vector<int> parents)
      : parents_(std::move(parents)), shapes_(std::move(shapes)) {
    nodes_.resize(shapes_.size(), std::vector<Node>(parents_.size()));
  }

  struct At {
    uint32_t ns = 0;  // From 0.
    int key = kNone;
  };

  Node& node(At at) { return nodes_[at.ns][static_cast<size_t>(at.key)]; }
  int ParentKey(int key) const { return parents_[static_cast<size_t>(key)]; }
  Node* Parent(At at) {
    const int parent = ParentKey(at.key);
    return parent == kNone ? nullptr : &node({at.ns, parent});
  }
  const NamespaceShape& shape(At at) const { return shapes_[at.ns]; }

  uint32_t Depth(int key) const {
    uint32_t depth = 0;
    while ((key = ParentKey(key)) != kNone) ++depth;
    return depth;
  }

  static uint32_t Reserved(const Node& node) {
    uint32_t reserved = 0;
    for (const ModelPart& part : node.parts) reserved += !part.committed;
    return reserved;
  }
  static uint32_t Holds(const Node& node) {
    uint32_t holds = 0;
    for (const ModelPart& part : node.parts) holds += part.holds;
    return holds;
  }
  bool GroupWarm(At at, uint32_t group) {
    uint32_t committed = 0;
    for (const ModelPart& part : node(at).parts) {
      committed += part.committed && part.id.group == group;
    }
    return committed == shape(at).shards[group];
  }
  bool GroupCold(At at, uint32_t group) {
    uint32_t committed = 0;
    for (const ModelCold& cold : node(at).colds) {
      committed += cold.committed && cold.id.group == group;
    }
    return committed == shape(at).shards[group];
  }
  bool GroupComplete(At at, uint32_t group) { return GroupWarm(at, group) || GroupCold(at, group); }
  // DRAM lacks nothing that NVMe has, or the other way round.
  bool ColdIsSpare(At at) {
    for (uint32_t group = 0; group < shape(at).shards.size(); ++group) {
      if (GroupCold(at, group) && !GroupWarm(at, group)) return false;
    }
    return true;
  }
  bool OnNvme(At at) {
    for (uint32_t group = 0; group < shape(at).shards.size(); ++group) {
      if ((shape(at).full_groups >> group & 1) != 0 && !GroupCold(at, group)) return false;
    }
    for (const ModelPart& part : node(at).parts) {
      if (!GroupCold(at, part.id.group)) return false;
    }
    return true;
  }
  bool InDram(At at) {
    for (uint32_t group = 0; group < shape(at).shards.size(); ++group) {
      if ((shape(at).full_groups >> group & 1) != 0 && !GroupWarm(at, group)) return false;
    }
    return ColdIsSpare(at);
  }
  bool Removable(At at) {
    const Node& n = node(at);
    return n.state != BlockState::kFree && n.state != BlockState::kStub &&
           !(n.parts.empty() && n.colds.empty()) && n.children.empty() && n.leases == 0 &&
           Holds(n) == 0 && Reserved(n) == 0;
  }
  bool MayLeaveDram(At at) {
    const Node& n = node(at);
    for (const int child : n.children) {
      if (!node({at.ns, child}).parts.empty()) return false;
    }
    return n.state != BlockState::kFree && n.state != BlockState::kStub && !n.parts.empty() &&
           Holds(n) == 0 && Reserved(n) == 0 && (Removable(at) || OnNvme(at));
  }
  bool MayLeaveNvme(At at) {
    const Node& n = node(at);
    for (const int child : n.children) {
      if (!node({at.ns, child}).colds.empty()) return false;
    }
    for (const ModelCold& cold : n.colds) {
      if (cold.busy()) return false;
    }
    return !n.colds.empty() && (n.state == BlockState::kStub || ColdIsSpare(at) || Removable(at));
  }

  void Add(At at) {
    node(at).state = BlockState::kProducing;
    if (Node* parent = Parent(at)) parent->children.push_back(at.key);
    ++used;
  }
  void AddPart(At at, PartId id, PartRef ref) {
    Node& n = node(at);
    n.parts.push_back({.id = id, .ref = ref});
    ++parts;
    if (n.state == BlockState::kStub) SetState(n, BlockState::kProducing);
  }
  void Commit(At at, PartRef ref) {
    for (ModelPart& part : node(at).parts) part.committed |= part.ref == ref;
    ShowIfServed(at);
  }
  void AddCold(At at, PartId id, ColdRef ref) {
    node(at).colds.push_back({.id = id, .ref = ref});
    ++colds;
  }
  // False: its block had given it up.
  bool CommitCold(At at, ColdRef ref) {
    if (orphans.erase(ref) > 0) return false;
    for (ModelCold& cold : node(at).colds) cold.committed |= cold.ref == ref;
    ShowIfServed(at);
    return true;
  }
  void DropCold(At at, ColdRef ref) {
    if (orphans.erase(ref) > 0) return;
    std::erase_if(node(at).colds, [ref](const ModelCold& cold) { return cold.ref == ref; });
    --colds;
  }
  void ShowIfServed(At at) {
    Node& n = node(at);
    if (n.state != BlockState::kProducing) return;
    for (uint32_t group = 0; group < shape(at).shards.size(); ++group) {
      if ((shape(at).full_groups >> group & 1) != 0 && !GroupComplete(at, group)) return;
    }
    const Node* parent = Parent(at);
    if (parent != nullptr && parent->state != BlockState::kVisible) {
      SetState(n, BlockState::kParked);
    } else {
      Show(at);
    }
  }
  void DropReserved(At at, PartRef ref) { TakeOutPart(node(at), ref); }
  void Abandon(At at) {
    DropParkedBelow(at);
    StubOrGo(at);
  }
  void DropParked(At at) {
    DropParkedBelow(at);
    DropCommitted(node(at));
    DropColds(node(at));
    ++parked_dropped;
    StubOrGo(at);
  }
  void MarkDamaged(At at, PartRef ref) {
    Node& n = node(at);
    uint32_t group = 0;
    for (const ModelPart& part : n.parts) {
      if (part.ref == ref) group = part.id.group;
    }
    TakeOutPart(n, ref);
    LoseGroup(at, group);
  }
  void LoseCold(At at, ColdRef ref, bool damaged) {
    Node& n = node(at);
    const bool was_visible = n.state == BlockState::kVisible;
    const auto it = std::find_if(n.colds.begin(), n.colds.end(),
                                 [ref](const ModelCold& cold) { return cold.ref == ref; });
    const uint32_t group = it->id.group;
    GiveUp(*it);
    n.colds.erase(it);
    const bool needed = (shape(at).full_groups >> group & 1) != 0;
    evicted += !damaged && was_visible && needed && !GroupComplete(at, group);
    LoseGroup(at, group);
  }
  void LoseGroup(At at, uint32_t group) {
    Node& n = node(at);
    if (GroupComplete(at, group)) return;
    const bool needed = (shape(at).full_groups >> group & 1) != 0;
    if (needed && n.state == BlockState::kParked) SetState(n, BlockState::kProducing);
    if (needed && n.state == BlockState::kVisible) {
      StubOrGo(at);
    } else if (n.state == BlockState::kProducing && n.parts.empty()) {
      Abandon(at);
    }
  }
  void Unlease(At at) {
    Node& n = node(at);
    if (--n.leases == 0 && n.state == BlockState::kStub && n.children.empty()) Remove(at);
  }
  void LeaveDram(At at) {
    if (OnNvme(at)) {
      DropCommitted(node(at));
      ++left_dram;
    } else {
      Remove(at);
      ++evicted;
    }
  }
  void LeaveNvme(At at) {
    if (node(at).state == BlockState::kStub || ColdIsSpare(at)) {
      DropColds(node(at));
      ++left_nvme;
    } else {
      Remove(at);
      ++evicted;
    }
  }

  // What LongestPrefix() should say: the longest chain, then the longest that every group serves.
  uint32_t Chain(uint32_t ns, const std::vector<uint64_t>& keys, const uint64_t* parent) {
    uint32_t length = 0;
    for (; length < keys.size(); ++length) {
      if (keys[length] >= parents_.size()) break;
      const At at{ns, static_cast<int>(keys[length])};
      if (node(at).state != BlockState::kVisible) break;
      const int above = ParentKey(at.key);
      if (length > 0 && (above == kNone || static_cast<uint64_t>(above) != keys[length - 1])) break;
      if (length == 0 && parent != nullptr &&
          (above == kNone || static_cast<uint64_t>(above) != *parent)) {
        break;
      }
    }
    return length;
  }
  bool Serves(At at) {
    const NamespaceShape& s = shape(at);
    for (uint32_t group = 0; group < s.shards.size(); ++group) {
      if ((s.state_groups >> group & 1) != 0 && !GroupComplete(at, group)) return false;
    }
    for (const NamespaceShape::Window& window : s.windows) {
      int key = at.key;
      for (uint32_t back = 0; back < window.blocks && key != kNone; ++back, key = ParentKey(key)) {
        if (!GroupComplete({at.ns, key}, window.group)) return false;
      }
    }
    return true;
  }
  uint32_t LongestPrefix(uint32_t ns, const std::vector<uint64_t>& keys, const uint64_t* parent) {
    uint32_t length = Chain(ns, keys, parent);
    while (length > 0 && !Serves({ns, static_cast<int>(keys[length - 1])})) --length;
    return length;
  }

  // Exact counts.
  uint64_t visible = 0;
  uint64_t stubs = 0;
  uint64_t used = 0;
  uint64_t parts = 0;
  uint64_t parked_dropped = 0;
  uint64_t evicted = 0;
  uint64_t left_dram = 0;
  uint64_t left_nvme = 0;
  uint64_t colds = 0;                                     // Without the orphans.
  std::set<ColdRef> orphans;                              // Given up while somebody is at them.
  std::vector<std::pair<PartRef, uint32_t>> quarantined;  // And how often each is held.

 private:
  void SetState(Node& n, BlockState state) {
    visible -= n.state == BlockState::kVisible;
    stubs -= n.state == BlockState::kStub;
    n.state = state;
    visible += n.state == BlockState::kVisible;
    stubs += n.state == BlockState::kStub;
  }
  void Release(const ModelPart& part) {
    if (part.holds > 0) {
      quarantined.emplace_back(part.ref, part.holds);
    } else {
      --parts;
    }
  }
  void GiveUp(const ModelCold& cold) {
    --colds;
    if (cold.busy()) orphans.insert(cold.ref);
  }
  void DropColds(Node& n) {
    for (const ModelCold& cold : n.colds) GiveUp(cold);
    n.colds.clear();
  }
  void TakeOutPart(Node& n, PartRef ref) {
    const auto it = std::find_if(n.parts.begin(), n.parts.end(),
                                 [ref](const ModelPart& part) { return part.ref == ref; });
    Release(*it);
    n.parts.erase(it);
  }
  void DropCommitted(Node& n) {
    std::vector<ModelPart> kept;
    for (const ModelPart& part : n.parts) {
      if (part.committed) {
        Release(part);
      } else {
        kept.push_back(part);  // Its producer still has it.
      }
    }
    n.parts = std::move(kept);
  }
  void Show(At at) {
    SetState(node(at), BlockState::kVisible);
    for (const int child : node(at).children) {
      if (node({at.ns, child}).state == BlockState::kParked) Show({at.ns, child});
    }
  }
  void DropParkedBelow(At at) {
    const std::vector<int> children = node(at).children;
    for (const int child : children) {
      if (node({at.ns, child}).state == BlockState::kParked) DropParked({at.ns, child});
    }
  }
  void StubOrGo(At at) {
    Node& n = node(at);
    if (Reserved(n) > 0) {
      SetState(n, BlockState::kProducing);
    } else if (n.children.empty() && n.leases == 0) {
      Remove(at);
    } else {
      SetState(n, BlockState::kStub);
    }
  }
  void Remove(At at) {
    Node& n = node(at);
    for (const ModelPart& part : n.parts) Release(part);
    n.parts.clear();
    DropColds(n);
    SetState(n, BlockState::kFree);
    --used;
    Node* parent = Parent(at);
    if (parent == nullptr) return;
    parent->children.erase(std::find(parent->children.begin(), parent->children.end(), at.key));
    if (parent->state == BlockState::kStub && parent->children.empty() && parent->leases == 0) {
      Remove({at.ns, ParentKey(at.key)});
    }
  }

  std::vector<int> parents_;  // By key: a chain hash names its parent.
  std::vector<NamespaceShape> shapes_;
  std::vector<std::vector<Node>> nodes_;  // By namespace and key.
};

std::vector<NamespaceShape> Shapes() {
  return {
      {.domain = 1, .pool = 0, .full_groups = 1, .shards = {1}},
      {.domain = 1, .pool = 0, .full_groups = 1, .shards = {2}},
      {.domain = 2,
       .pool = 1,
       .full_groups = 1,
       .windows = {{.group = 1, .blocks = 3}},
       .shards = {1, 1}},
      {.domain = 2,
       .pool = 2,
       .full_groups = 0b10001,
       .state_groups = 0b1000,
       .windows = {{.group = 1, .blocks = 2}, {.group = 2, .blocks = 5}},
       .shards = {2, 1, 2, 1, 1}},
  };
}

// Chains with branches: most keys continue the one before them.
std::vector<int> RandomForest(Random& random, int keys) {
  std::vector<int> parents;
  for (int key = 0; key < keys; ++key) {
    const uint64_t dice = random() % 100;
    if (key == 0 || dice < 3) {
      parents.push_back(kNone);
    } else if (dice < 80) {
      parents.push_back(key - 1);
    } else {
      parents.push_back(static_cast<int>(random() % static_cast<uint64_t>(key)));
    }
  }
  return parents;
}

class PropertyRun {
 public:
  explicit PropertyRun(uint64_t seed)
      : random_(seed),
        model_(Shapes(), RandomForest(random_, kKeys)),
        lru_(kMaxBlocks),
        policy_(lru_, kMaxBlocks),
        cold_lru_(kMaxBlocks),
        cold_policy_(cold_lru_, kMaxBlocks),
        two_tiers_(seed % 3 != 0),
        index_(policy_, room_,
               {.max_blocks = kMaxBlocks,
                .max_parts = 4096,
                .max_cold_parts = two_tiers_ ? kMaxColds : 0,
                .secret = random_()},
               two_tiers_ ? &cold_policy_ : nullptr) {
    for (const NamespaceShape& shape : Shapes()) index_.AddNamespace(shape);
  }

  void Step() {
    const Model::At at{static_cast<uint32_t>(random_() % 4), static_cast<int>(random_() % kKeys)};
    const uint64_t dice = random_() % 100;
    if (dice < 20) {
      ProduceChain(at);
    } else if (dice < 52) {
      FinishPart(/*commit=*/random_() % 16 != 0);
    } else if (dice < 56) {
      Abandon(at);
    } else if (dice < 57) {
      DropParked(at);
    } else if (dice < 58) {
      Damage(at);
    } else if (dice < 60) {
      if (const BlockRef block = Ref(at)) index_.Use(block, ++tick_);
    } else if (dice < 66) {
      Lease(at);
    } else if (dice < 72) {
      Unlease();
    } else if (dice < 76) {
      Hold(at);
    } else if (dice < 80) {
      Unhold();
    } else if (dice < 83) {
      EvictOne();
    } else {
      Look(at.ns);
    }
    if (two_tiers_) StepOfNvme();
    CheckCounts();
    CheckNear(at);
  }

  void StepOfNvme() {
    const Model::At at{static_cast<uint32_t>(random_() % 4), static_cast<int>(random_() % kKeys)};
    const uint64_t dice = random_() % 100;
    if (dice < 20) {
      WriteChain(at);
    } else if (dice < 24) {
      Recover(at);
    } else if (dice < 60) {
      FinishWrite(/*commit=*/random_() % 8 != 0);
    } else if (dice < 64) {
      BeginRead(at);
    } else if (dice < 68) {
      EndRead();
    } else if (dice < 69) {
      LoseRecord(at);
    } else if (dice < 73) {
      EvictOne();
    } else if (dice < 76) {
      EvictOneCold();
    }
    CheckNear(at);
  }
  bool two_tiers() const { return two_tiers_; }

  // Every block, and every count of the index.
  void CheckAll() {
    for (uint32_t ns = 0; ns < 4; ++ns) {
      for (int key = 0; key < kKeys; ++key) CheckOne({ns, key});
    }
    const Residency::AuditResult audit = index_.Audit(1, kMaxBlocks);
    ASSERT_EQ(audit.errors, 0u) << audit.first_error;
    ASSERT_EQ(audit.stranded, 0u);
    ASSERT_EQ(audit.blocks, model_.visible);
  }

  // So that a run that did nothing does not pass.
  const Residency::Counts& counts() const { return index_.counts(); }
  uint64_t blocks_found() const { return blocks_found_; }
  uint64_t cold_blocks_found() const { return cold_blocks_found_; }

  // Everybody gives everything back; then the index must be empty.
  void Drain() {
    while (!leases_.empty()) Unlease();
    while (!holds_.empty()) Unhold();
    while (!reading_.empty()) EndRead();
    while (!reserved_.empty()) FinishPart(/*commit=*/false);
    while (!writing_.empty()) FinishWrite(/*commit=*/false);
    for (uint32_t ns = 0; ns < 4; ++ns) {
      for (int key = 0; key < kKeys; ++key) Abandon({ns, key});
    }
    CheckAll();
    while (index_.NextVictim().has_value() || cold_policy_.Next(0).has_value()) {
      EvictOne();
      EvictOneCold();
    }
    CheckCounts();
    ASSERT_EQ(index_.counts().used, 0u);
    ASSERT_EQ(index_.counts().parts, 0u);
    ASSERT_EQ(index_.counts().stubs, 0u);
    ASSERT_EQ(index_.counts().quarantined_bytes, 0u);
    ASSERT_EQ(index_.counts().cold_parts, 0u);
    ASSERT_EQ(index_.counts().cold_bytes, 0u);
    ASSERT_EQ(room_.out(), 0u);
    ASSERT_EQ(room_.records(), 0u);
    ASSERT_EQ(policy_.offered(), 0u);
    ASSERT_EQ(cold_policy_.offered(), 0u);
  }

 private:
  static constexpr int kKeys = 120;
  static constexpr uint32_t kMaxBlocks = 300;
  static constexpr uint32_t kPartBytes = 100;
  static constexpr uint32_t kMaxColds = 400;

  BlockRef Ref(Model::At at) const {
    return index_.Find(at.ns + 1, HashOf(static_cast<uint64_t>(at.key)));
  }

  // Some of a chain that ends at `at`, root first: what a reservation of several blocks does.
  void ProduceChain(Model::At at) {
    const std::vector<uint64_t> chain = ChainTo(at.key);
    int produced = 0;
    for (size_t i = 0; i < chain.size() && produced < 6; ++i) {
      const Model::At block{at.ns, static_cast<int>(chain[i])};
      const BlockState state = model_.node(block).state;
      const bool lacking = state == BlockState::kFree || state == BlockState::kStub ||
                           state == BlockState::kProducing;
      if (!lacking && random_() % 8 != 0) continue;
      Produce(block);
      ++produced;
    }
  }

  void Produce(Model::At at) {
    BlockRef block = Ref(at);
    if (block == 0) {
      const int above = model_.ParentKey(at.key);
      BlockRef parent = 0;
      if (above != kNone) {
        parent = Ref({at.ns, above});
        if (parent == 0 || index_.block(parent).state == BlockState::kStub) return;
        index_.Lease(parent);  // As a reservation does while it makes room.
      }
      if (index_.full()) EvictOne();
      if (parent != 0) index_.Unlease(parent);
      if (index_.full()) return;
      block = index_.Add(at.ns + 1, HashOf(static_cast<uint64_t>(at.key)), parent, ++tick_);
      model_.Add(at);
      if (random_() % 16 == 0) {  // No room for its parts.
        index_.Abandon(block);
        model_.Abandon(at);
        return;
      }
    }
    // All that is missing, or, as a worker of one shard does, some of it.
    const uint64_t some = random_() % 3 == 0 ? random_() : ~uint64_t{0};
    const NamespaceShape& shape = model_.shape(at);
    bool first = index_.block(block).first_part == 0;
    for (uint8_t group = 0; group < shape.shards.size(); ++group) {
      for (uint8_t shard = 0; shard < shape.shards[group]; ++shard) {
        const PartId id{group, shard};
        if (index_.FindPart(block, id) != 0) continue;
        if (!first && (some >> (2 * group + shard) & 1) == 0) continue;
        first = false;
        const PartRef part = index_.AddPart(block, id, 0, room_.Take(), kPartBytes, 1);
        model_.AddPart(at, id, part);
        reserved_.emplace_back(at, part);
      }
    }
  }

  void FinishPart(bool commit) {
    if (reserved_.empty()) return;
    // One of the last: producers mostly finish what they began.
    const size_t i = reserved_.size() - 1 - random_() % std::min<size_t>(reserved_.size(), 40);
    const auto [at, part] = reserved_[i];
    reserved_[i] = reserved_.back();
    reserved_.pop_back();
    if (commit) {
      const uint64_t visible = model_.visible;
      model_.Commit(at, part);
      ASSERT_EQ(index_.CommitPart(part, 7, ++tick_), model_.visible - visible);
      return;
    }
    model_.DropReserved(at, part);
    index_.DropReserved(part);
    if (random_() % 2 == 0) Abandon(at);
  }

  void Abandon(Model::At at) {
    Node& node = model_.node(at);
    if (node.state != BlockState::kProducing || !node.parts.empty()) return;
    index_.Abandon(Ref(at));
    model_.Abandon(at);
  }

  void DropParked(Model::At at) {
    if (model_.node(at).state != BlockState::kParked) return;
    index_.DropParked(Ref(at));
    model_.DropParked(at);
  }

  const ModelPart* AnyCommitted(Model::At at) {
    Node& node = model_.node(at);
    if (node.parts.empty()) return nullptr;
    const ModelPart& part = node.parts[random_() % node.parts.size()];
    return part.committed ? &part : nullptr;
  }

  void Damage(Model::At at) {
    const ModelPart* part = AnyCommitted(at);
    if (part == nullptr) return;
    const PartRef ref = part->ref;
    index_.MarkDamaged(ref);
    model_.MarkDamaged(at, ref);
  }

  void Lease(Model::At at) {
    const BlockRef block = Ref(at);
    if (block == 0 || leases_.size() > 40) return;
    index_.Lease(block);
    ++model_.node(at).leases;
    leases_.push_back(at);
  }
  void Unlease() {
    if (leases_.empty()) return;
    std::swap(leases_[random_() % leases_.size()], leases_.back());
    const Model::At at = leases_.back();
    leases_.pop_back();
    index_.Unlease(Ref(at));
    model_.Unlease(at);
  }

  void Hold(Model::At at) {
    if (AnyCommitted(at) == nullptr || holds_.size() > 60) return;
    for (ModelPart& part : model_.node(at).parts) {
      if (!part.committed) continue;
      ASSERT_TRUE(index_.Hold(part.ref));
      ++part.holds;
      holds_.emplace_back(at, part.ref);
      return;
    }
  }
  void Unhold() {
    if (holds_.empty()) return;
    std::swap(holds_[random_() % holds_.size()], holds_.back());
    const auto [at, ref] = holds_.back();
    holds_.pop_back();
    index_.Unhold(ref);
    for (size_t i = 0; i < model_.quarantined.size(); ++i) {
      if (model_.quarantined[i].first != ref) continue;
      if (--model_.quarantined[i].second == 0) {
        model_.quarantined.erase(model_.quarantined.begin() + static_cast<ptrdiff_t>(i));
        --model_.parts;
      }
      return;
    }
    for (ModelPart& part : model_.node(at).parts) part.holds -= part.ref == ref;
  }

  void EvictOne() {
    const std::optional<EvictionPolicy::Victim> victim = index_.NextVictim();
    if (!victim.has_value()) return;
    const Model::At at = AtOf(victim->block);
    ASSERT_TRUE(model_.MayLeaveDram(at)) << "a block was offered that must stay";
    ASSERT_TRUE(index_.EvictNext());
    model_.LeaveDram(at);
    ASSERT_EQ(Ref(at) == 0, model_.node(at).state == BlockState::kFree);
  }
  void EvictOneCold() {
    const std::optional<EvictionPolicy::Victim> victim = cold_policy_.Next(0);
    if (!victim.has_value()) return;
    const Model::At at = AtOf(victim->block);
    ASSERT_TRUE(model_.MayLeaveNvme(at)) << "a block was offered that must stay on NVMe";
    ASSERT_TRUE(index_.EvictNextCold());
    model_.LeaveNvme(at);
    ASSERT_EQ(Ref(at) == 0, model_.node(at).state == BlockState::kFree);
  }

  // --- records -----------------------------------------------------------------------------------

  void AddCold(Model::At at, BlockRef block, PartId id) {
    if (index_.colds_full()) return;
    const ColdRef ref = index_.AddCold(block, id, kPartBytes, 7, 1);
    index_.MoveCold(ref, room_.TakeRecord());
    model_.AddCold(at, id, ref);
    writing_.emplace_back(at, ref);
  }
  // What DRAM has of some of a chain and NVMe has not, root first.
  void WriteChain(Model::At at) {
    int written = 0;
    for (const uint64_t key : ChainTo(at.key)) {
      const Model::At above{at.ns, static_cast<int>(key)};
      if (model_.node(above).state != BlockState::kVisible || written == 6) return;
      for (const ModelPart& part : model_.node(above).parts) {
        if (!part.committed || index_.FindCold(Ref(above), part.id) != 0) continue;
        AddCold(above, Ref(above), part.id);
        ++written;
      }
    }
  }
  // A block that a start finds on NVMe, below one that is there.
  void Recover(Model::At at) {
    const int above = model_.ParentKey(at.key);
    if (Ref(at) != 0 || index_.full()) return;
    if (above != kNone && model_.node({at.ns, above}).state != BlockState::kVisible) return;
    const BlockRef parent = above == kNone ? 0 : Ref({at.ns, above});
    const BlockRef block =
        index_.Add(at.ns + 1, HashOf(static_cast<uint64_t>(at.key)), parent, ++tick_);
    model_.Add(at);
    const NamespaceShape& shape = model_.shape(at);
    for (uint8_t group = 0; group < shape.shards.size(); ++group) {
      for (uint8_t shard = 0; shard < shape.shards[group]; ++shard) {
        AddCold(at, block, {group, shard});
      }
    }
    if (model_.node(at).colds.empty()) Abandon(at);
  }
  void FinishWrite(bool commit) {
    if (writing_.empty()) return;
    const size_t i = writing_.size() - 1 - random_() % std::min<size_t>(writing_.size(), 40);
    const auto [at, ref] = writing_[i];
    writing_[i] = writing_.back();
    writing_.pop_back();
    if (commit) {
      const uint64_t visible = model_.visible;
      model_.CommitCold(at, ref);
      ASSERT_EQ(index_.CommitCold(ref, ++tick_), model_.visible - visible);
      return;
    }
    model_.DropCold(at, ref);
    room_.NoRecord(index_.cold(ref).place);
    index_.DropCold(ref);
    if (model_.node(at).colds.empty()) Abandon(at);
  }
  const ModelCold* AnyCold(Model::At at) {
    const Node& node = model_.node(at);
    if (node.colds.empty()) return nullptr;
    const ModelCold& cold = node.colds[random_() % node.colds.size()];
    return cold.committed ? &cold : nullptr;
  }
  void BeginRead(Model::At at) {
    const ModelCold* cold = AnyCold(at);
    if (cold == nullptr || reading_.size() > 60) return;
    ASSERT_TRUE(index_.BeginRead(cold->ref));
    reading_.emplace_back(at, cold->ref);
    ++const_cast<ModelCold*>(cold)->readers;
  }
  void EndRead() {
    if (reading_.empty()) return;
    std::swap(reading_[random_() % reading_.size()], reading_.back());
    const auto [at, ref] = reading_.back();
    reading_.pop_back();
    index_.EndRead(ref);
    if (model_.orphans.contains(ref)) {
      const bool last = std::none_of(reading_.begin(), reading_.end(),
                                     [ref = ref](const auto& read) { return read.second == ref; });
      if (last) model_.orphans.erase(ref);
      return;
    }
    for (ModelCold& cold : model_.node(at).colds) cold.readers -= cold.ref == ref;
  }
  void LoseRecord(Model::At at) {
    const ModelCold* cold = AnyCold(at);
    if (cold == nullptr) return;
    const ColdRef ref = cold->ref;
    const bool damaged = random_() % 2 == 0;
    if (damaged) {
      index_.MarkColdDamaged(ref);
    } else {
      index_.GiveUpCold(ref);
    }
    model_.LoseCold(at, ref, damaged);
  }

  Model::At AtOf(BlockRef block) {
    const uint32_t ns = index_.block(block).ns - 1;
    for (int key = 0; key < kKeys; ++key) {
      if (Ref({ns, key}) == block) return {ns, key};
    }
    ADD_FAILURE() << "block " << block << " has an unknown key";
    return {};
  }

  // A real chain, or what is none: truncated, mixed of two, with garbage or a wrong depth, starting
  // below the root, each with and without a parent.
  void Look(uint32_t ns) {
    std::vector<uint64_t> keys = ChainTo(static_cast<int>(random_() % kKeys));
    bool has_parent = false;
    uint64_t parent = 0;
    if (random_() % 3 == 0) {
      const size_t from = random_() % keys.size();
      if (from > 0 && random_() % 2 == 0) {
        has_parent = true;
        parent = random_() % 4 == 0 ? random_() % kKeys : keys[from - 1];
      }
      keys.erase(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(from));
    } else if (random_() % 8 == 0) {
      has_parent = true;  // Of a root: there is none.
      parent = random_() % 2 == 0 ? kGarbage : random_() % kKeys;
    }
    switch (random_() % 8) {
      case 0:
        keys[random_() % keys.size()] = kGarbage;
        break;
      case 1:
        keys[random_() % keys.size()] = random_() % kKeys;
        break;
      case 2: {  // The head of one chain, the tail of another.
        const std::vector<uint64_t> other = ChainTo(static_cast<int>(random_() % kKeys));
        keys.resize(std::max<size_t>(1, keys.size() - random_() % keys.size()));
        const size_t from = random_() % other.size();
        keys.insert(keys.end(), other.begin() + static_cast<ptrdiff_t>(from), other.end());
        break;
      }
      case 3:  // The wrong depth.
        keys.erase(keys.begin() + static_cast<ptrdiff_t>(random_() % keys.size()));
        if (keys.empty()) keys.push_back(kGarbage);
        break;
      case 4:
        keys.insert(keys.end(), 1 + random_() % 20, kGarbage);
        break;
      default:
        break;
    }
    const std::string packed = Packed(keys);
    const KeyList list(packed, kMaxHashBytes);
    const ChainHash parent_hash = HashOf(parent);
    const uint32_t expected = model_.LongestPrefix(ns, keys, has_parent ? &parent : nullptr);
    const Residency::Prefix prefix =
        index_.LongestPrefix(ns + 1, list, has_parent ? &parent_hash : nullptr);
    blocks_found_ += expected;
    ASSERT_EQ(prefix.blocks, expected);
    ASSERT_EQ(prefix.deepest, expected == 0 ? 0 : Ref({ns, static_cast<int>(keys[expected - 1])}));
    LookAtTiers(ns, keys, prefix);

    std::vector<BlockRef> found(1 + random_() % keys.size());
    const uint32_t chain = model_.Chain(ns, keys, has_parent ? &parent : nullptr);
    const uint32_t scanned =
        index_.Scan(ns + 1, list, has_parent ? &parent_hash : nullptr, absl::MakeSpan(found));
    ASSERT_EQ(scanned, std::min<size_t>(chain, found.size()));
    for (uint32_t i = 0; i < scanned; ++i) {
      ASSERT_EQ(found[i], Ref({ns, static_cast<int>(keys[i])}));
    }
  }

  // Where the tiers nest along the chain, its warm blocks are counted exactly.
  void LookAtTiers(uint32_t ns, const std::vector<uint64_t>& keys,
                   const Residency::Prefix& prefix) {
    uint32_t warm = 0;
    while (warm < prefix.blocks && model_.InDram({ns, static_cast<int>(keys[warm])})) ++warm;
    bool nested = true;
    if (prefix.blocks > 0) {
      bool below = true;
      for (int key = static_cast<int>(keys[prefix.blocks - 1]); key != kNone;
           key = model_.ParentKey(key)) {
        const bool in_dram = model_.InDram({ns, key});
        nested &= below || in_dram;
        below = !in_dram;
      }
    }
    if (nested) {
      ASSERT_EQ(index_.WarmBlocks(prefix), warm);
    }
    ASSERT_LE(index_.WarmBlocks(prefix), prefix.blocks);
    cold_blocks_found_ += prefix.blocks - index_.WarmBlocks(prefix);
  }

  std::vector<uint64_t> ChainTo(int key) const {
    std::vector<uint64_t> keys;
    for (; key != kNone; key = model_.ParentKey(key)) keys.push_back(static_cast<uint64_t>(key));
    std::reverse(keys.begin(), keys.end());
    return keys;
  }

  void CheckCounts() {
    const Residency::Counts& counts = index_.counts();
    ASSERT_EQ(counts.visible, model_.visible);
    ASSERT_EQ(counts.stubs, model_.stubs);
    ASSERT_EQ(counts.used, model_.used);
    ASSERT_EQ(counts.parts, model_.parts);
    ASSERT_EQ(counts.parts, room_.out());
    ASSERT_EQ(counts.quarantined_parts, model_.quarantined.size());
    ASSERT_EQ(counts.quarantined_bytes, model_.quarantined.size() * kPartBytes);
    ASSERT_EQ(counts.parked_dropped, model_.parked_dropped);
    ASSERT_EQ(counts.evicted, model_.evicted);
    ASSERT_EQ(counts.left_dram, model_.left_dram);
    ASSERT_EQ(counts.left_nvme, model_.left_nvme);
    ASSERT_EQ(counts.cold_parts, model_.colds + model_.orphans.size());
    ASSERT_EQ(counts.cold_parts, room_.records());
  }

  // What an operation on `at` can have changed: it, its parent and its children.
  void CheckNear(Model::At at) {
    CheckOne(at);
    if (model_.ParentKey(at.key) != kNone) CheckOne({at.ns, model_.ParentKey(at.key)});
    for (const int child : model_.node(at).children) CheckOne({at.ns, child});
  }

  void CheckOne(Model::At at) {
    const Node& node = model_.node(at);
    const BlockRef ref = Ref(at);
    if (node.state == BlockState::kFree) {
      ASSERT_EQ(ref, 0u);
      return;
    }
    ASSERT_NE(ref, 0u);
    const Block& block = index_.block(ref);
    ASSERT_EQ(block.state, node.state);
    ASSERT_EQ(block.leases, node.leases);
    ASSERT_EQ(block.holds, Model::Holds(node));
    ASSERT_EQ(block.reserved_parts, Model::Reserved(node));
    ASSERT_EQ(index_.evictable(ref), model_.MayLeaveDram(at));
    ASSERT_EQ(policy_.offered(ref), model_.MayLeaveDram(at));
    ASSERT_EQ(index_.cold_evictable(ref), model_.MayLeaveNvme(at));
    ASSERT_EQ(cold_policy_.offered(ref), model_.MayLeaveNvme(at));
    ASSERT_EQ(index_.removable(ref), model_.Removable(at));
    for (const ModelCold& cold : node.colds) ASSERT_EQ(index_.FindCold(ref, cold.id), cold.ref);
    ASSERT_EQ(block.depth, model_.Depth(at.key));
    for (const ModelPart& part : node.parts) ASSERT_EQ(index_.FindPart(ref, part.id), part.ref);
    // Prefix closure: no visible block hangs below one that cannot be found, except for a hole that
    // damage made, and a hole says so.
    const int above = model_.ParentKey(at.key);
    const BlockRef parent = above == kNone ? 0 : Ref({at.ns, above});
    ASSERT_EQ(block.parent, parent);
    ASSERT_TRUE(above == kNone || parent != 0);
    if (node.state == BlockState::kVisible && parent != 0) {
      ASSERT_TRUE(index_.block(parent).state == BlockState::kVisible || index_.block(parent).gap);
    }
  }

  Random random_;
  Model model_;
  CountingRoom room_;
  LruPolicy lru_;
  CheckingPolicy policy_;
  LruPolicy cold_lru_;
  CheckingPolicy cold_policy_;
  const bool two_tiers_;
  Residency index_;
  uint64_t tick_ = 0;
  uint64_t blocks_found_ = 0;
  uint64_t cold_blocks_found_ = 0;
  std::vector<std::pair<Model::At, PartRef>> reserved_;
  std::vector<Model::At> leases_;
  std::vector<std::pair<Model::At, PartRef>> holds_;
  std::vector<std::pair<Model::At, ColdRef>> writing_;
  std::vector<std::pair<Model::At, ColdRef>> reading_;
};

TEST(ResidencyPropertyTest, EqualsTheNaiveModel) {
  uint64_t ops = NumberFromEnvironment("KVD_PROPERTY_OPS", RoundsForThisBuild(12'000'000));
  const uint64_t first_seed = NumberFromEnvironment("KVD_SEED", 1);
  constexpr uint64_t kOpsPerSeed = 200'000;
  for (uint64_t seed = first_seed; ops > 0; ++seed) {
    SCOPED_TRACE(testing::Message() << "KVD_SEED=" << seed);
    PropertyRun run(seed);
    const uint64_t steps = std::min(ops, kOpsPerSeed);
    ops -= steps;
    for (uint64_t step = 0; step < steps; ++step) {
      run.Step();
      if (step % 512 == 0) run.CheckAll();
      if (testing::Test::HasFatalFailure()) {
        FAIL() << "at step " << step << " of KVD_SEED=" << seed;
      }
    }
    if (steps == kOpsPerSeed) {
      EXPECT_GT(run.counts().visible, 50u);
      EXPECT_GT(run.counts().evicted, 1000u);
      EXPECT_GT(run.counts().parked_dropped, 50u);
      EXPECT_GT(run.blocks_found(), 10'000u);
      if (run.two_tiers()) {
        EXPECT_GT(run.counts().left_dram, 1000u);
        EXPECT_GT(run.counts().left_nvme, 1000u);
        EXPECT_GT(run.cold_blocks_found(), 1000u);
      }
    }
    run.Drain();
    if (testing::Test::HasFatalFailure()) FAIL() << "draining KVD_SEED=" << seed;
  }
}

// --- long lists ----------------------------------------------------------------------------------

// Chains of one part a block; keys are numbers, `parents` says how they hang together.
class LongListTest : public testing::Test {
 protected:
  static constexpr uint32_t kMaxBlocks = 40'000;

  void SetUp() override { ns_ = index_.AddNamespace({.shards = {1}}); }

  void Store(const std::vector<uint64_t>& chain) {
    BlockRef parent = 0;
    for (const uint64_t key : chain) {
      BlockRef block = index_.Find(ns_, HashOf(key));
      if (block == 0) {
        block = index_.Add(ns_, HashOf(key), parent, ++tick_);
        index_.CommitPart(index_.AddPart(block, {}, 0, room_.Take(), 100, 1), 7, tick_);
      }
      parent = block;
    }
  }
  static std::vector<uint64_t> Chain(uint64_t first, size_t size) {
    std::vector<uint64_t> keys(size);
    for (size_t i = 0; i < size; ++i) keys[i] = first + i;
    return keys;
  }
  // The first `shared` keys of `chain`, then others.
  static std::vector<uint64_t> Branch(std::vector<uint64_t> chain, size_t shared, uint64_t first) {
    for (size_t i = shared; i < chain.size(); ++i) chain[i] = first + i;
    return chain;
  }
  Residency::Prefix Look(const std::vector<uint64_t>& keys, const uint64_t* parent = nullptr) {
    const std::string packed = Packed(keys);
    const ChainHash hash = HashOf(parent == nullptr ? 0 : *parent);
    return index_.LongestPrefix(ns_, KeyList(packed, kMaxHashBytes),
                                parent == nullptr ? nullptr : &hash);
  }
  uint32_t Exact(const std::vector<uint64_t>& keys) {
    const std::string packed = Packed(keys);
    std::vector<BlockRef> found(keys.size());
    return index_.Scan(ns_, KeyList(packed, kMaxHashBytes), nullptr, absl::MakeSpan(found));
  }

  Random random_{NumberFromEnvironment("KVD_SEED", 1)};
  CountingRoom room_;
  LruPolicy policy_{kMaxBlocks};
  Residency index_{
      policy_, room_, {.max_blocks = kMaxBlocks, .max_parts = kMaxBlocks, .secret = 5}};
  NamespaceId ns_ = 0;
  uint64_t tick_ = 0;
};

TEST_F(LongListTest, RealChainsAreExact) {
  const std::vector<uint64_t> trunk = Chain(0, 6000);
  Store(trunk);
  for (uint64_t i = 1; i <= 8; ++i) Store(Branch(trunk, 700 * i, i * 100'000));
  for (int round = 0; round < 400; ++round) {
    const uint64_t branch = random_() % 9;
    const size_t stored = 513 + random_() % 5000;
    std::vector<uint64_t> keys =
        branch == 0 ? trunk : Branch(trunk, 700 * branch, branch * 100'000);
    keys.resize(stored);
    size_t from = random_() % 2 == 0 ? 0 : random_() % (stored - 512);
    const uint64_t parent = from == 0 ? 0 : keys[from - 1];
    keys.erase(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(from));
    const size_t expected = keys.size();
    keys.insert(keys.end(), random_() % 3000, kGarbage);  // What is not there yet.

    const Residency::Prefix prefix = Look(keys);
    ASSERT_EQ(prefix.blocks, expected);
    ASSERT_EQ(prefix.deepest, index_.Find(ns_, HashOf(keys[expected - 1])));
    const uint64_t wrong = kGarbage + 1;
    ASSERT_EQ(Look(keys, &wrong).blocks, 0u);
    if (from > 0) {
      ASSERT_EQ(Look(keys, &parent).blocks, expected);
    }
  }
}

TEST_F(LongListTest, AChainCutByEvictionIsExact) {
  const std::vector<uint64_t> chain = Chain(0, 5000);
  Store(chain);
  for (uint32_t left = 5000; left > 513; left -= 97) {
    ASSERT_EQ(Look(chain).blocks, left);
    for (int i = 0; i < 97; ++i) ASSERT_TRUE(index_.EvictNext());
  }
}

TEST_F(LongListTest, AHoleEndsAChainExactly) {
  const std::vector<uint64_t> chain = Chain(0, 5000);
  Store(chain);
  for (const uint32_t hole : {1u, 512u, 513u, 4000u, 4998u}) {
    const BlockRef block = index_.Find(ns_, HashOf(hole));
    index_.MarkDamaged(index_.FindPart(block, {}));
    EXPECT_EQ(Look(chain).blocks, hole);
    index_.CommitPart(index_.AddPart(block, {}, 0, room_.Take(), 100, 1), 7, ++tick_);
    EXPECT_EQ(Look(chain).blocks, 5000u);  // What lies below is found again.
  }
}

// What is promised of a list that is not a stored chain: up to 4,096 blocks the exact length.
// Beyond, the answer is never less than the true prefix, and names a visible block at that depth
// below the list's first, by its own key; which keys between are compared the caller cannot
// predict.
TEST_F(LongListTest, AListThatIsNoChainGetsNoLengthThatDoesNotExist) {
  const std::vector<uint64_t> trunk = Chain(0, 6000);
  Store(trunk);
  Store(Branch(trunk, 3000, 100'000));
  Store(Chain(200'000, 6000));  // Of another root.
  int overlong = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<uint64_t> keys = trunk;
    keys.resize(600 + random_() % 5400);
    const size_t at = 1 + random_() % (keys.size() - 1);
    const size_t run = std::min(keys.size() - at, size_t{1} + random_() % 64);
    const uint64_t other =
        std::vector<uint64_t>{kGarbage, 100'000, 200'000, random_() % 6000}[random_() % 4];
    for (size_t i = at; i < at + run; ++i) keys[i] = other == kGarbage ? kGarbage : other + i;

    const uint32_t exact = Exact(keys);
    const Residency::Prefix prefix = Look(keys);
    ASSERT_GE(prefix.blocks, exact);
    ASSERT_LE(prefix.blocks, keys.size());
    if (prefix.blocks <= Residency::kExactBlocks) {
      ASSERT_EQ(prefix.blocks, exact);
    }
    ASSERT_EQ(prefix.deepest, index_.Find(ns_, HashOf(keys[prefix.blocks - 1])));
    ASSERT_EQ(index_.block(prefix.deepest).depth, prefix.blocks - 1);
    const BlockRef first = index_.Find(ns_, HashOf(keys[0]));
    BlockRef above = prefix.deepest;
    while (index_.block(above).parent != 0) above = index_.block(above).parent;
    ASSERT_EQ(above, first);
    overlong += prefix.blocks != exact;
  }
  RecordProperty("lists_with_unseen_replacements", overlong);
}

TEST_F(LongListTest, ATailOfAnotherRootIsAlwaysCut) {
  const std::vector<uint64_t> one = Chain(0, 6000);
  const std::vector<uint64_t> other = Chain(200'000, 6000);
  Store(one);
  Store(other);
  for (int round = 0; round < 2000; ++round) {
    const size_t cut = 1 + random_() % 5990;
    std::vector<uint64_t> keys = one;
    std::copy(other.begin() + static_cast<ptrdiff_t>(cut), other.end(),
              keys.begin() + static_cast<ptrdiff_t>(cut));
    ASSERT_EQ(Look(keys).blocks, cut);
  }
}

}  // namespace
}  // namespace kvd
