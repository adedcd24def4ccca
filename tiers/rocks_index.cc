#include "tiers/rocks_index.h"

#include <fcntl.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "proto/types/checksum.h"
#include "proto/types/kill_point.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

namespace fs = std::filesystem;

// Keys. A segment's row comes before all rows of records.
constexpr char kFormatKey[] = "F";
constexpr char kFormatValue[] = "1";
constexpr char kOwnerKey[] = "O";
constexpr char kSegmentPrefix = 'S';
constexpr char kRecordPrefix = 'r';

constexpr size_t kMaxBatchRows = 4096;
constexpr absl::Duration kResumeEvery = absl::Seconds(1);

// So many that another one would have to wait long: a WAL that a start replays in half a second.
constexpr size_t kWriteBufferBytes = 8u << 20;
constexpr size_t kWalBytes = 16u << 20;
constexpr size_t kCacheBytes = 8u << 20;

void AppendBigEndian(std::string& key, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) key.push_back(static_cast<char>(value >> shift));
}
uint32_t BigEndian(const char* bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}
std::string SegmentKey(uint32_t segment) {
  std::string key(1, kSegmentPrefix);
  AppendBigEndian(key, segment);
  return key;
}
std::string RecordKey(RecordPlace place) {
  std::string key(1, kRecordPrefix);
  AppendBigEndian(key, place.segment);
  AppendBigEndian(key, place.page);
  return key;
}

struct SegmentValue {
  uint64_t incarnation;
  uint8_t sealed;
  uint8_t has_trailer;
  uint8_t freed;
  uint8_t reserved;
  uint32_t sum;  // CRC32C of the segment's number and of all before.
};
static_assert(sizeof(SegmentValue) == 16);

uint32_t SumOf(uint32_t segment, const SegmentValue& value) {
  const auto bytes = [](const void* data, size_t size) {
    return absl::MakeConstSpan(static_cast<const std::byte*>(data), size);
  };
  return Crc32cExtend(Crc32c(bytes(&segment, sizeof(segment))),
                      bytes(&value, offsetof(SegmentValue, sum)));
}
std::string EncodeSegmentRow(const SegmentRow& row) {
  SegmentValue value = {row.incarnation, row.sealed, row.has_trailer, row.freed, 0, 0};
  value.sum = SumOf(row.segment, value);
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
std::optional<SegmentRow> DecodeSegmentRow(const rocksdb::Slice& key, const rocksdb::Slice& bytes) {
  SegmentValue value;
  if (key.size() != 5 || bytes.size() != sizeof(value)) return std::nullopt;
  std::memcpy(&value, bytes.data(), sizeof(value));
  const uint32_t segment = BigEndian(key.data() + 1);
  if (value.sum != SumOf(segment, value)) return std::nullopt;
  return SegmentRow{.segment = segment,
                    .incarnation = value.incarnation,
                    .sealed = value.sealed != 0,
                    .has_trailer = value.has_trailer != 0,
                    .freed = value.freed != 0};
}

rocksdb::Options DatabaseOptions() {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kCacheBytes);
  rocksdb::Options options;
  options.create_if_missing = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.compression = rocksdb::kNoCompression;  // Hashes and sums.
  options.write_buffer_size = kWriteBufferBytes;
  options.max_write_buffer_number = 3;
  options.max_total_wal_size = kWalBytes;
  options.target_file_size_base = 32u << 20;
  options.max_open_files = 128;
  options.max_background_jobs = 2;
  options.info_log_level = rocksdb::ERROR_LEVEL;
  options.keep_log_file_num = 1;
  options.max_log_file_size = 1u << 20;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  return options;
}

absl::Status FromRocks(const rocksdb::Status& status, absl::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = absl::StrCat(what, ": ", status.ToString());
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(text);
  if (status.IsCorruption()) return absl::DataLossError(text);
  return absl::UnavailableError(text);
}

// Whether another process holds the lock file. RocksDB would only say that it cannot be locked.
absl::Status CheckUnlocked(const std::string& path) {
  const std::string lock_path = path + "/LOCK";
  const int fd = open(lock_path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return absl::OkStatus();  // None was ever there, or Open() says what is wrong.
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  const int asked = fcntl(fd, F_GETLK, &lock);
  close(fd);
  if (asked != 0 || lock.l_type == F_UNLCK) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(path, " is in use by process ", lock.l_pid));
}

// Makes the directory where it is absent, and finds out whether it can be written: if not, it is
// not the contents that are damaged.
absl::Status CheckWritable(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && !S_ISDIR(info.st_mode)) return absl::OkStatus();
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoStatus(errno, path);
  const std::string probe = path + "/.writable";
  const int fd = open(probe.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(errno, probe);
  const bool written = write(fd, "k", 1) == 1;
  const int error = errno;
  close(fd);
  unlink(probe.c_str());
  return written ? absl::OkStatus() : ErrnoStatus(error, probe);
}

// RocksDB makes a new database where CURRENT is gone, and removes what is left of the old one.
bool LostItsHead(const std::string& path) {
  std::error_code error;
  if (fs::exists(path + "/CURRENT", error)) return false;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    const std::string name = entry.path().filename().string();
    if (name != "LOCK" && !name.starts_with("LOG")) return true;
  }
  return false;
}

// Renames `path` to the next free PATH.damaged-N, and removes the earlier ones, which were ours.
absl::StatusOr<std::string> MoveAside(const std::string& path) {
  std::error_code error;
  const fs::path whole(path);
  const std::string prefix = whole.filename().string() + ".damaged-";
  uint32_t next = 1;
  std::vector<fs::path> earlier;
  for (const fs::directory_entry& entry : fs::directory_iterator(whole.parent_path(), error)) {
    const std::string name = entry.path().filename().string();
    uint32_t number = 0;
    if (!name.starts_with(prefix) || !absl::SimpleAtoi(name.substr(prefix.size()), &number)) {
      continue;
    }
    next = std::max(next, number + 1);
    earlier.push_back(entry.path());
  }
  const std::string target = absl::StrCat(path, ".damaged-", next);
  if (rename(path.c_str(), target.c_str()) != 0) return ErrnoStatus(errno, target);
  for (const fs::path& old : earlier) fs::remove_all(old, error);
  return target;
}

class RocksIndexImpl final : public RocksIndex {
 public:
  explicit RocksIndexImpl(RocksIndexOptions options) : options_(std::move(options)) {}
  ~RocksIndexImpl() override;

  // Opens the database as it is. kDataLoss: it is damaged.
  absl::Status OpenDatabase();
  // The same after what was there was moved aside.
  absl::Status OpenAnew(std::string* moved_to);
  void Start() {
    thread_ = std::thread([this] { Loop(); });
  }

  absl::Status Load(const Visitor& visitor) override;
  absl::Status Reset() override;
  std::string owner() const override { return owner_; }
  void SetOwner(const std::string& set) override;

  void PutRecord(RecordPlace place, const PackedHeader& header) override {
    Queue({.kind = Row::Kind::kPutRecord, .place = place, .header = header});
  }
  void EraseRecord(RecordPlace place) override {
    Queue({.kind = Row::Kind::kEraseRecord, .place = place});
  }
  void PutSegment(const SegmentRow& row) override {
    Queue({.kind = Row::Kind::kPutSegment, .segment = row});
  }
  void EraseSegment(uint32_t segment) override {
    Queue({.kind = Row::Kind::kEraseSegment, .segment = {.segment = segment}});
  }
  absl::Status Flush() override;
  RocksIndexStats stats() const override {
    absl::MutexLock lock(&mu_);
    RocksIndexStats stats = stats_;
    stats.rows_waiting = static_cast<uint32_t>(rows_.size());
    return stats;
  }

 private:
  struct Row {
    enum class Kind : uint8_t { kPutRecord, kEraseRecord, kPutSegment, kEraseSegment };
    Kind kind = Kind::kPutRecord;
    RecordPlace place;
    SegmentRow segment;
    PackedHeader header;
  };

  void Queue(const Row& row);
  void Loop();
  std::vector<Row> Wait();
  void Write(const std::vector<Row>& rows);
  void AddToBatch(const Row& row, rocksdb::WriteBatch& batch);
  bool IsLossy(uint32_t segment) {
    absl::MutexLock lock(&mu_);
    return lossy_.contains(segment);
  }

  const RocksIndexOptions options_;
  std::unique_ptr<rocksdb::DB> db_;
  std::string owner_;
  std::thread thread_;
  absl::Time resume_at_ = absl::InfinitePast();  // The index thread's.

  mutable absl::Mutex mu_;
  std::deque<Row> rows_ ABSL_GUARDED_BY(mu_);
  absl::Time first_at_ ABSL_GUARDED_BY(mu_);  // When the first of them came.
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool hurry_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  // Segments of which a row was lost: none of these is told to be sealed.
  absl::flat_hash_set<uint32_t> lossy_ ABSL_GUARDED_BY(mu_);
  absl::Status error_ ABSL_GUARDED_BY(mu_);  // Since the last Flush().
  RocksIndexStats stats_ ABSL_GUARDED_BY(mu_);
};

RocksIndexImpl::~RocksIndexImpl() {
  if (thread_.joinable()) {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
  }
  if (db_ == nullptr) return;
  // A WAL to replay would cost the next start; one that could not be spared is only slower.
  static_cast<void>(db_->Flush(rocksdb::FlushOptions()));
  static_cast<void>(db_->Close());
}

absl::Status RocksIndexImpl::OpenDatabase() {
  if (LostItsHead(options_.path)) return absl::DataLossError("CURRENT is gone");
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened = rocksdb::DB::Open(DatabaseOptions(), options_.path, &db);
  if (!opened.ok()) return absl::DataLossError(opened.ToString());
  db_.reset(db);
  std::string format;
  const rocksdb::Status got = db_->Get(rocksdb::ReadOptions(), kFormatKey, &format);
  if (got.IsNotFound()) {
    // New, or nothing of it was ever written.
    const rocksdb::Status put = db_->Put(rocksdb::WriteOptions(), kFormatKey, kFormatValue);
    if (!put.ok()) return FromRocks(put, options_.path);
  } else if (!got.ok() || format != kFormatValue) {
    return absl::DataLossError(absl::StrCat("format '", format, "' ", got.ToString()));
  }
  const rocksdb::Status owned = db_->Get(rocksdb::ReadOptions(), kOwnerKey, &owner_);
  if (owned.IsNotFound()) owner_.clear();
  return owned.ok() || owned.IsNotFound() ? absl::OkStatus()
                                          : absl::DataLossError(owned.ToString());
}

absl::Status RocksIndexImpl::OpenAnew(std::string* moved_to) {
  db_.reset();
  owner_.clear();
  const absl::StatusOr<std::string> target = MoveAside(options_.path);
  if (!target.ok()) return target.status();
  if (moved_to != nullptr) *moved_to = *target;
  const absl::Status writable = CheckWritable(options_.path);
  return writable.ok() ? OpenDatabase() : writable;
}

absl::Status RocksIndexImpl::Load(const Visitor& visitor) {
  const absl::Status flushed = Flush();
  if (!flushed.ok()) return flushed;
  if (db_ == nullptr) return absl::UnavailableError(absl::StrCat(options_.path, " is not open"));
  rocksdb::ReadOptions read;
  read.fill_cache = false;
  read.readahead_size = 2u << 20;
  const std::unique_ptr<rocksdb::Iterator> rows(db_->NewIterator(read));
  for (rows->Seek(rocksdb::Slice(&kSegmentPrefix, 1)); rows->Valid(); rows->Next()) {
    const rocksdb::Slice key = rows->key();
    const rocksdb::Slice value = rows->value();
    if (key[0] == kSegmentPrefix) {
      const std::optional<SegmentRow> row = DecodeSegmentRow(key, value);
      row ? visitor.segment(*row) : visitor.damaged();
    } else if (key[0] == kRecordPrefix && key.size() == 9) {
      const std::optional<RecordHeader> header =
          UnpackHeader({reinterpret_cast<const std::byte*>(value.data()), value.size()});
      const RecordPlace place = {BigEndian(key.data() + 1), BigEndian(key.data() + 5)};
      header ? visitor.record(place, *header) : visitor.damaged();
    } else {
      visitor.damaged();
    }
  }
  if (rows->status().ok()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(options_.path, ": ", rows->status().ToString()));
}

absl::Status RocksIndexImpl::Reset() {
  const absl::Status flushed = Flush();  // Nothing is being written while the database goes.
  static_cast<void>(flushed);
  const std::string owner = owner_;
  const absl::Status opened = OpenAnew(nullptr);
  if (opened.ok() && !owner.empty()) SetOwner(owner);
  return opened;
}

void RocksIndexImpl::SetOwner(const std::string& set) {
  owner_ = set;
  if (db_ == nullptr) return;
  const rocksdb::Status put = db_->Put(rocksdb::WriteOptions(), kOwnerKey, set);
  absl::MutexLock lock(&mu_);
  error_.Update(FromRocks(put, options_.path));
}

void RocksIndexImpl::Queue(const Row& row) {
  absl::MutexLock lock(&mu_);
  const bool of_record = row.kind == Row::Kind::kPutRecord || row.kind == Row::Kind::kEraseRecord;
  if (of_record && rows_.size() >= options_.waiting_max) {
    ++stats_.rows_dropped;
    // What is not erased comes back at the next start; what is not put must be looked for then.
    if (row.kind == Row::Kind::kPutRecord) lossy_.insert(row.place.segment);
    return;
  }
  // What follows is of another life of the segment.
  if (row.kind == Row::Kind::kEraseSegment) lossy_.erase(row.segment.segment);
  if (rows_.empty()) first_at_ = absl::Now();
  rows_.push_back(row);
}

absl::Status RocksIndexImpl::Flush() {
  absl::MutexLock lock(&mu_);
  hurry_ = true;
  const auto idle = [this]()
                        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return rows_.empty() && !writing_; };
  mu_.Await(absl::Condition(&idle));
  hurry_ = false;
  return std::exchange(error_, absl::OkStatus());
}

void RocksIndexImpl::Loop() {
  while (true) {
    const std::vector<Row> rows = Wait();
    if (rows.empty()) return;
    Write(rows);
    absl::MutexLock lock(&mu_);
    writing_ = false;
  }
}

// The next rows to write; none: it is over.
std::vector<RocksIndexImpl::Row> RocksIndexImpl::Wait() {
  absl::MutexLock lock(&mu_);
  const auto any = [this]()
                       ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !rows_.empty() || stopping_; };
  mu_.Await(absl::Condition(&any));
  const auto enough = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return rows_.size() >= options_.batch_rows || hurry_ || stopping_;
  };
  mu_.AwaitWithDeadline(absl::Condition(&enough),
                        first_at_ + absl::Milliseconds(options_.batch_ms));
  const size_t count = std::min(rows_.size(), kMaxBatchRows);
  std::vector<Row> rows(rows_.begin(), rows_.begin() + static_cast<ptrdiff_t>(count));
  rows_.erase(rows_.begin(), rows_.begin() + static_cast<ptrdiff_t>(count));
  first_at_ = absl::Now();
  writing_ = !rows.empty();
  return rows;
}

void RocksIndexImpl::AddToBatch(const Row& row, rocksdb::WriteBatch& batch) {
  switch (row.kind) {
    case Row::Kind::kPutRecord:
      batch.Put(RecordKey(row.place),
                {reinterpret_cast<const char*>(row.header.data()), row.header.size()});
      return;
    case Row::Kind::kEraseRecord:
      batch.Delete(RecordKey(row.place));
      return;
    case Row::Kind::kPutSegment: {
      SegmentRow segment = row.segment;
      segment.sealed = segment.sealed && !IsLossy(segment.segment);
      batch.Put(SegmentKey(segment.segment), EncodeSegmentRow(segment));
      return;
    }
    case Row::Kind::kEraseSegment: {
      const uint32_t segment = row.segment.segment;
      batch.Delete(SegmentKey(segment));
      batch.DeleteRange(RecordKey({segment, 0}), RecordKey({segment, UINT32_MAX}));
      return;
    }
  }
}

void RocksIndexImpl::Write(const std::vector<Row>& rows) {
  rocksdb::WriteBatch batch;
  for (const Row& row : rows) AddToBatch(row, batch);
  KVD_KILL_POINT("index.before_batch");
  rocksdb::Status status = db_ != nullptr ? db_->Write(rocksdb::WriteOptions(), &batch)
                                          : rocksdb::Status::IOError("it could not be reset");
  if (db_ != nullptr && !status.ok() && absl::Now() >= resume_at_) {
    // After an error RocksDB takes no writes until it is told that it may be over.
    resume_at_ = absl::Now() + kResumeEvery;
    if (db_->Resume().ok()) status = db_->Write(rocksdb::WriteOptions(), &batch);
  }
  KVD_KILL_POINT("index.batch_written");
  absl::MutexLock lock(&mu_);
  if (status.ok()) {
    stats_.rows_written += rows.size();
    return;
  }
  ++stats_.write_errors;
  error_.Update(FromRocks(status, options_.path));
  for (const Row& row : rows) {
    lossy_.insert(row.kind == Row::Kind::kPutRecord || row.kind == Row::Kind::kEraseRecord
                      ? row.place.segment
                      : row.segment.segment);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<RocksIndex>> RocksIndex::Open(const RocksIndexOptions& options,
                                                             std::string* moved_to) {
  absl::Status status = CheckUnlocked(options.path);
  if (status.ok()) status = CheckWritable(options.path);
  if (!status.ok()) return status;
  auto index = std::make_unique<RocksIndexImpl>(options);
  status = index->OpenDatabase();
  if (!status.ok()) status = index->OpenAnew(moved_to);
  if (!status.ok()) return status;
  index->Start();
  return index;
}

}  // namespace kvd
