#include "bench/compact_trace.h"

#include <zlib.h>
#include <zstd.h>

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr uint8_t kVersion = 1;
constexpr size_t kHeaderBytesMax = 64;        // A bound for the reader; the real one is shorter.
constexpr size_t kChunkBytes = 64u << 10;     // A chunk ends with the request that passes this.
constexpr size_t kChunkBytesMax = 32u << 20;  // One request of kTraceBlocksMax blocks fits.
constexpr size_t kFrameBytes = 8;             // Length and checksum before a chunk.
constexpr uint64_t kNextNew = 0;              // Tokens of a tail; larger ones name a known block.
constexpr uint64_t kOtherNew = 1;
constexpr uint64_t kKnown = 2;

static_assert(kTraceBlocksMax * (1 + 10) + 6 * 10 + kChunkBytes <= kChunkBytesMax);

// Arithmetic modulo 2^64, so that any two ids or times have a difference that fits.
uint64_t ZigZag(uint64_t difference) { return (difference << 1) ^ (0 - (difference >> 63)); }
uint64_t UnZigZag(uint64_t value) { return (value >> 1) ^ (0 - (value & 1)); }

void AppendVarint(uint64_t value, std::string& target) {
  while (value >= 0x80) {
    target.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  target.push_back(static_cast<char>(value));
}

// Reads at `offset` and moves it; false when `bytes` end first or the value exceeds 64 bits.
bool TakeVarint(std::string_view bytes, size_t& offset, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64 && offset < bytes.size(); shift += 7) {
    const uint8_t byte = static_cast<uint8_t>(bytes[offset++]);
    if (shift == 63 && byte > 1) return false;
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

void AppendFixed32(uint32_t value, std::string& target) {
  char bytes[4];
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  target.append(bytes, sizeof(bytes));
}

uint32_t Fixed32(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i)
    value |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  return value;
}

uint32_t Crc(uint32_t crc, std::string_view bytes) {
  return static_cast<uint32_t>(
      crc32_z(crc, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

// Length, checksum, payload; the checksum continues that of the chunk before and covers the length.
void AppendChunk(std::string_view payload, uint32_t& crc, std::string& target) {
  std::string length;
  AppendFixed32(static_cast<uint32_t>(payload.size()), length);
  crc = Crc(Crc(crc, length), payload);
  target += length;
  AppendFixed32(crc, target);
  target += payload;
}

std::string Compress(std::string_view bytes) {
  constexpr int kLevel = 19;
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(),
                                                                     &ZSTD_freeCCtx);
  KVD_CHECK(context != nullptr);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  std::string result(ZSTD_compressBound(bytes.size()), '\0');
  const size_t size =
      ZSTD_compress2(context.get(), result.data(), result.size(), bytes.data(), bytes.size());
  KVD_CHECK(!ZSTD_isError(size)) << ZSTD_getErrorName(size);
  result.resize(size);
  return result;
}

}  // namespace

absl::Status CompactTraceWriter::Add(const TraceRequest& request) {
  const std::vector<uint64_t>& ids = request.hash_ids;
  if (ids.size() > kTraceBlocksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a request of more than ", kTraceBlocksMax, " blocks"));
  }
  if (ids.size() > kCompactTraceDistinctMax - blocks_.size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a trace of more than ", kCompactTraceDistinctMax, " distinct blocks"));
  }

  // How far the request follows a chain that the reader can spell by walking up from its end.
  size_t depth = 0;
  uint32_t last = CompactTraceBlock::kNoParent;
  for (; depth < ids.size(); ++depth) {
    const auto it = position_.find(ids[depth]);
    if (it == position_.end() || blocks_[it->second].parent != last) break;
    last = it->second;
  }

  AppendVarint(ZigZag(request.timestamp_ms - timestamp_ms_), chunk_);
  AppendVarint(request.input_length, chunk_);
  AppendVarint(request.output_length, chunk_);
  AppendVarint(depth, chunk_);
  if (depth > 0) AppendVarint(last, chunk_);
  AddTail(request, depth, last);

  timestamp_ms_ = request.timestamp_ms;
  ++count_;
  if (chunk_.size() >= kChunkBytes) EndChunk();
  return absl::OkStatus();
}

void CompactTraceWriter::AddTail(const TraceRequest& request, size_t depth, uint32_t parent) {
  const std::vector<uint64_t>& ids = request.hash_ids;
  bool consecutive = true;
  for (size_t i = depth; i < ids.size() && consecutive; ++i) {
    consecutive = ids[i] == next_id_ + (i - depth) && !position_.contains(ids[i]);
  }
  AppendVarint(2 * (ids.size() - depth) + (consecutive ? 0 : 1), chunk_);

  for (size_t i = depth; i < ids.size(); ++i) {
    const auto it = position_.find(ids[i]);
    const bool known = it != position_.end();
    if (known) {  // Never in a consecutive tail.
      AppendVarint(kKnown + it->second, chunk_);
      parent = it->second;
      continue;
    }
    if (!consecutive && ids[i] == next_id_) {
      AppendVarint(kNextNew, chunk_);
    } else if (!consecutive) {
      AppendVarint(kOtherNew, chunk_);
      AppendVarint(ZigZag(ids[i] - next_id_), chunk_);
    }
    parent = Remember(ids[i], parent);
  }
}

uint32_t CompactTraceWriter::Remember(uint64_t id, uint32_t parent) {
  const uint32_t position = static_cast<uint32_t>(blocks_.size());
  const bool first = parent == CompactTraceBlock::kNoParent;
  blocks_.push_back({id, parent, first ? 1 : blocks_[parent].depth + 1});
  position_.emplace(id, position);
  next_id_ = id + 1;
  return position;
}

void CompactTraceWriter::EndChunk() {
  AppendChunk(chunk_, crc_, chunks_);
  chunk_.clear();
}

std::string CompactTraceWriter::Finish() {
  if (!chunk_.empty()) EndChunk();
  EndChunk();  // An empty one ends the trace.

  std::string file(kCompactTraceMagic);
  file.push_back(static_cast<char>(kVersion));
  AppendVarint(options_.block_tokens, file);
  AppendVarint(count_, file);
  AppendFixed32(Crc(0, file), file);
  file += chunks_;
  return options_.compress ? Compress(file) : file;
}

absl::StatusOr<std::unique_ptr<TraceReader>> CompactTraceReader::Open(
    std::unique_ptr<ByteSource> source) {
  std::unique_ptr<CompactTraceReader> reader(new CompactTraceReader(std::move(source)));
  if (absl::Status status = reader->ReadHeader(); !status.ok()) return status;
  return reader;
}

absl::Status CompactTraceReader::ReadHeader() {
  absl::StatusOr<std::string_view> bytes = source_->Peek(kHeaderBytesMax);
  if (!bytes.ok()) return bytes.status();
  size_t offset = kCompactTraceMagic.size();
  if (offset == bytes->size()) return absl::InvalidArgumentError("the header ends early");
  const uint8_t version = static_cast<uint8_t>((*bytes)[offset++]);
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("version ", version, " of the compact form is not known here"));
  }
  uint64_t block_tokens = 0;
  if (!TakeVarint(*bytes, offset, block_tokens) || !TakeVarint(*bytes, offset, count_) ||
      bytes->size() - offset < sizeof(uint32_t)) {
    return absl::InvalidArgumentError("the header ends early");
  }
  if (Fixed32(bytes->substr(offset, 4)) != Crc(0, bytes->substr(0, offset)) ||
      block_tokens > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError("the header is damaged");
  }
  block_tokens_ = static_cast<uint32_t>(block_tokens);
  source_->Consume(offset + sizeof(uint32_t));
  return absl::OkStatus();
}

absl::StatusOr<bool> CompactTraceReader::Next(TraceRequest& request) {
  if (status_.ok() && !ended_ && offset_ == chunk_.size()) status_ = ReadChunk();
  if (status_.ok() && ended_) return false;
  if (status_.ok()) status_ = ReadRequest(request);
  if (status_.ok()) {
    ++read_;
    return true;
  }
  return absl::Status(status_.code(), absl::StrCat("request ", read_ + 1, ": ", status_.message()));
}

absl::Status CompactTraceReader::ReadChunk() {
  absl::StatusOr<std::string_view> bytes = source_->Peek(kFrameBytes);
  if (!bytes.ok()) return bytes.status();
  if (bytes->size() < kFrameBytes) return absl::InvalidArgumentError("the trace ends early");
  const std::string length_bytes(bytes->substr(0, 4));
  const size_t length = Fixed32(length_bytes);
  const uint32_t crc = Fixed32(bytes->substr(4, 4));
  if (length > kChunkBytesMax) return absl::InvalidArgumentError("the trace is damaged");

  bytes = source_->Peek(kFrameBytes + length);
  if (!bytes.ok()) return bytes.status();
  if (bytes->size() < kFrameBytes + length) {
    return absl::InvalidArgumentError("the trace ends early");
  }
  chunk_ = bytes->substr(kFrameBytes, length);
  offset_ = 0;
  crc_ = Crc(Crc(crc_, length_bytes), chunk_);
  if (crc_ != crc) return absl::InvalidArgumentError("the trace is damaged");
  source_->Consume(kFrameBytes + length);
  if (length > 0) return absl::OkStatus();

  if (read_ != count_) {
    return absl::InvalidArgumentError(absl::StrCat("the header promised ", count_, " requests"));
  }
  bytes = source_->Peek(1);
  if (!bytes.ok()) return bytes.status();
  if (!bytes->empty()) return absl::InvalidArgumentError("bytes follow the end of the trace");
  ended_ = true;
  return absl::OkStatus();
}

// The checksum has shown that these bytes are as they were written, not that a sane writer wrote
// them, so every number is examined.
absl::Status CompactTraceReader::ReadRequest(TraceRequest& request) {
  uint64_t time, input_length, output_length, depth;
  if (!ReadVarint(time) || !ReadVarint(input_length) || !ReadVarint(output_length) ||
      !ReadVarint(depth)) {
    return absl::InvalidArgumentError("incomplete");
  }
  if (input_length > std::numeric_limits<uint32_t>::max() ||
      output_length > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError("a length beyond 32 bits");
  }
  if (depth > kTraceBlocksMax) return absl::InvalidArgumentError("too many blocks");

  uint64_t last = CompactTraceBlock::kNoParent;
  if (depth > 0) {
    if (!ReadVarint(last)) return absl::InvalidArgumentError("incomplete");
    if (last >= blocks_.size() || blocks_[last].depth != depth) {
      return absl::InvalidArgumentError("a shared prefix that does not exist");
    }
  }
  timestamp_ms_ += UnZigZag(time);
  request.timestamp_ms = timestamp_ms_;
  request.input_length = static_cast<uint32_t>(input_length);
  request.output_length = static_cast<uint32_t>(output_length);
  request.hash_ids.resize(depth);
  uint32_t block = static_cast<uint32_t>(last);
  for (size_t i = depth; i-- > 0; block = blocks_[block].parent) {
    request.hash_ids[i] = blocks_[block].id;
  }

  uint64_t tail;
  if (!ReadVarint(tail)) return absl::InvalidArgumentError("incomplete");
  if (tail / 2 > kTraceBlocksMax - depth) return absl::InvalidArgumentError("too many blocks");
  if (tail % 2 == 1) return ReadTail(request, tail / 2, static_cast<uint32_t>(last));
  uint32_t parent = static_cast<uint32_t>(last);
  for (uint64_t i = 0; i < tail / 2; ++i) {
    request.hash_ids.push_back(next_id_);
    absl::StatusOr<uint32_t> position = Remember(next_id_, parent);
    if (!position.ok()) return position.status();
    parent = *position;
  }
  return absl::OkStatus();
}

absl::Status CompactTraceReader::ReadTail(TraceRequest& request, uint64_t size, uint32_t parent) {
  for (uint64_t i = 0; i < size; ++i) {
    uint64_t token, difference = 0;
    if (!ReadVarint(token) || (token == kOtherNew && !ReadVarint(difference))) {
      return absl::InvalidArgumentError("incomplete");
    }
    if (token >= kKnown) {
      if (token - kKnown >= blocks_.size()) {
        return absl::InvalidArgumentError("a block that did not appear before");
      }
      parent = static_cast<uint32_t>(token - kKnown);
      request.hash_ids.push_back(blocks_[parent].id);
      continue;
    }
    const uint64_t id = next_id_ + UnZigZag(difference);  // No difference: the next.
    request.hash_ids.push_back(id);
    absl::StatusOr<uint32_t> position = Remember(id, parent);
    if (!position.ok()) return position.status();
    parent = *position;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> CompactTraceReader::Remember(uint64_t id, uint32_t parent) {
  if (blocks_.size() == kCompactTraceDistinctMax) {
    return absl::ResourceExhaustedError("too many distinct blocks");
  }
  const bool first = parent == CompactTraceBlock::kNoParent;
  blocks_.push_back({id, parent, first ? 1 : blocks_[parent].depth + 1});
  next_id_ = id + 1;
  return static_cast<uint32_t>(blocks_.size() - 1);
}

bool CompactTraceReader::ReadVarint(uint64_t& value) { return TakeVarint(chunk_, offset_, value); }

}  // namespace kvd
