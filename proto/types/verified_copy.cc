#include "proto/types/verified_copy.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/types/check.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

constexpr size_t kKiB = 1 << 10;
constexpr size_t kMiB = 1 << 20;
constexpr size_t kHugePage = 2 * kMiB;

// What stands for each size class, and how much one trial copies: enough to drown the clock and the
// first misses, little enough that all trials together take some milliseconds.
struct TrialSize {
  std::string_view name;
  size_t block_bytes;
  size_t trial_bytes;
};
constexpr TrialSize kTrialSizes[] = {
    {"<64KiB", 16 * kKiB, 256 * kKiB}, {"<1MiB", 256 * kKiB, kMiB}, {">=1MiB", 2 * kMiB, 2 * kMiB}};
constexpr std::string_view kUseNames[] = {"memory", "cache"};

constexpr int kRounds = 7;
constexpr int kTrialRounds = 2;  // After these, who is far behind is not tried again.
constexpr double kFarBehind = 1.25;
// A loop has to beat those before it in the list by this factor, so that noise does not choose
// between equals and every start of one machine takes the same.
constexpr double kClearlyBetter = 1.02;

// Memory of the calibration, in huge pages where the system gives them. Empty when it gives none.
class Area {
 public:
  explicit Area(size_t bytes) {
    mapped_bytes_ = bytes + kHugePage;
    map_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map_ == MAP_FAILED) return;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(map_) + kHugePage - 1) & -kHugePage;
    bytes_ = absl::MakeSpan(reinterpret_cast<std::byte*>(start), bytes);
    madvise(bytes_.data(), bytes_.size(), MADV_HUGEPAGE);  // A wish; small pages work too.
    std::memset(bytes_.data(), 0x5A, bytes_.size());
  }
  ~Area() {
    if (map_ != MAP_FAILED) munmap(map_, mapped_bytes_);
  }
  Area(const Area&) = delete;
  Area& operator=(const Area&) = delete;

  absl::Span<std::byte> bytes() const { return bytes_; }

 private:
  size_t mapped_bytes_;
  void* map_;
  absl::Span<std::byte> bytes_;
};

// One trial: `blocks` copies of `block_bytes` at random places, sources cold. A target of kMemory
// is cold as well; one of kCache is used again and again, as staging is.
class Bench {
 public:
  explicit Bench(absl::Span<std::byte> area)
      : sources_(area.subspan(0, area.size() / 2)), targets_(area.subspan(area.size() / 2)) {}

  double CopySeconds(const CopyLoop& loop, const TrialSize& size) {
    const size_t block_bytes = std::min(size.block_bytes, sources_.size());
    const size_t blocks = std::min(size.trial_bytes, sources_.size()) / block_bytes;
    const std::vector<size_t> from = RandomPlaces(blocks, block_bytes);
    const std::vector<size_t> to = RandomPlaces(blocks, block_bytes);
    for (size_t i = 0; i < blocks; ++i) {
      DropFromCaches(sources_.subspan(from[i], block_bytes));
      if (loop.use == CopyUse::kMemory) DropFromCaches(targets_.subspan(to[i], block_bytes));
    }
    const auto start = std::chrono::steady_clock::now();
    for (size_t i = 0; i < blocks; ++i) {
      std::byte* target = targets_.data() + (loop.use == CopyUse::kMemory ? to[i] : 0);
      loop.copy_sum(target, sources_.data() + from[i], block_bytes);
    }
    return Since(start) / static_cast<double>(blocks * block_bytes);
  }

  double SumSeconds(const SumLoop& loop) {
    const size_t bytes = std::min(2 * kMiB, sources_.size());
    const absl::Span<std::byte> source = sources_.subspan(RandomPlaces(1, bytes)[0], bytes);
    DropFromCaches(source);
    const auto start = std::chrono::steady_clock::now();
    loop.sum(0, source.data(), source.size());
    return Since(start) / static_cast<double>(bytes);
  }

  template <typename T>
  void Shuffle(std::vector<T>& order) {
    std::shuffle(order.begin(), order.end(), random_);
  }

 private:
  static double Since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  // Distinct places, in random order.
  std::vector<size_t> RandomPlaces(size_t count, size_t block_bytes) {
    std::vector<size_t> places(sources_.size() / block_bytes);
    std::iota(places.begin(), places.end(), size_t{0});
    Shuffle(places);
    places.resize(count);
    for (size_t& place : places) place *= block_bytes;
    return places;
  }

  const absl::Span<std::byte> sources_;
  const absl::Span<std::byte> targets_;
  std::minstd_rand random_{1};
};

template <typename Loop>
struct Winner {
  const Loop* loop;
  double gb_per_s;  // Of 10^9 bytes; 0 when not measured.
};

// Interleaves the candidates, because a machine's speed drifts, and takes the median, because one
// lucky trial proves as little as an unlucky one. `seconds(loop)` is one trial, in seconds a byte.
template <typename Loop, typename Seconds>
Winner<Loop> Fastest(const std::vector<const Loop*>& candidates, Bench& bench, Seconds seconds) {
  std::vector<std::vector<double>> trials(candidates.size());
  std::vector<size_t> order(candidates.size());
  std::iota(order.begin(), order.end(), size_t{0});
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    bench.Shuffle(order);
    for (const size_t i : order) {
      trials[i].push_back(seconds(*candidates[i]));
      least = std::min(least, trials[i].back());
    }
    if (round + 1 != kTrialRounds) continue;
    std::erase_if(order, [&](size_t i) {
      return *std::min_element(trials[i].begin(), trials[i].end()) > least * kFarBehind;
    });
  }
  std::sort(order.begin(), order.end());  // Back to the order of preference.
  Winner<Loop> winner{nullptr, 0};
  for (const size_t i : order) {
    std::nth_element(trials[i].begin(), trials[i].begin() + kRounds / 2, trials[i].end());
    const double gb_per_s = 1e-9 / trials[i][kRounds / 2];
    if (gb_per_s > winner.gb_per_s * kClearlyBetter) winner = {candidates[i], gb_per_s};
  }
  return winner;
}

std::vector<const CopyLoop*> LoopsFor(CopyUse use) {
  std::vector<const CopyLoop*> loops;
  for (const CopyLoop& loop : CopyLoops()) {
    if (loop.use == use) loops.push_back(&loop);
  }
  return loops;
}

std::string Describe(std::string_view loop, double gb_per_s) {
  if (gb_per_s == 0) return absl::StrCat(View(loop), " unmeasured");
  // One digit after the point is what a calibration of some milliseconds can tell.
  const auto tenths = std::lround(gb_per_s * 10);
  return absl::StrCat(View(loop), " ", tenths / 10, ".", tenths % 10, " GB/s");
}

}  // namespace

int Copier::SizeClass(size_t size) { return size < 64 * kKiB ? 0 : size < kMiB ? 1 : 2; }

Copier::Copier(const Options& options) {
  const std::vector<std::string> wanted = absl::StrSplit(options.loop, ',', absl::SkipEmpty());
  const Area area(options.calibration_bytes);
  Bench bench(area.bytes());
  const bool measure = area.bytes().size() >= kMiB;

  for (int use = 0; use < kUses; ++use) {
    std::vector<const CopyLoop*> candidates = LoopsFor(static_cast<CopyUse>(use));
    const auto chosen = std::find_if(candidates.begin(), candidates.end(), [&](auto* loop) {
      return std::find(wanted.begin(), wanted.end(), loop->name) != wanted.end();
    });
    absl::StrAppend(&description_, View(kUseNames[use]), ": ");
    if (chosen != candidates.end()) {
      std::fill(std::begin(choice_[use]), std::end(choice_[use]), *chosen);
      absl::StrAppend(&description_, View((*chosen)->name), " as told; ");
      continue;
    }
    for (int size = 0; size < kSizeClasses; ++size) {
      Winner<CopyLoop> winner{candidates.front(), 0};
      if (measure) {
        winner = Fastest(candidates, bench, [&](const CopyLoop& loop) {
          return bench.CopySeconds(loop, kTrialSizes[size]);
        });
      }
      choice_[use][size] = winner.loop;
      absl::StrAppend(&description_, View(kTrialSizes[size].name), " ",
                      Describe(winner.loop->name, winner.gb_per_s),
                      size + 1 < kSizeClasses ? ", " : "; ");
    }
  }

  std::vector<const SumLoop*> sums;
  for (const SumLoop& loop : SumLoops()) sums.push_back(&loop);
  Winner<SumLoop> sum{sums.front(), 0};
  if (measure) {
    sum = Fastest(sums, bench, [&](const SumLoop& loop) { return bench.SumSeconds(loop); });
  }
  sum_ = sum.loop;
  absl::StrAppend(&description_, "sum: ", Describe(sum.loop->name, sum.gb_per_s));

  const absl::Span<const CopyLoop> known = CopyLoops();
  for (const std::string& name : wanted) {
    if (std::none_of(known.begin(), known.end(), [&](auto& loop) { return loop.name == name; })) {
      absl::StrAppend(&description_, "; no loop '", name, "' here");
    }
  }
}

uint32_t Copier::CopySum(absl::Span<std::byte> target, absl::Span<const std::byte> source,
                         CopyUse use) const {
  KVD_CHECK(target.size() == source.size());
  return Choice(use, source.size()).copy_sum(target.data(), source.data(), source.size());
}

void Copier::Copy(absl::Span<std::byte> target, absl::Span<const std::byte> source,
                  CopyUse use) const {
  KVD_CHECK(target.size() == source.size());
  Choice(use, source.size()).copy(target.data(), source.data(), source.size());
}

uint32_t Copier::Sum(absl::Span<const std::byte> bytes) const {
  return sum_->sum(0, bytes.data(), bytes.size());
}

}  // namespace kvd
