#include "proto/types/msgpack.h"

#include <bit>

namespace kvd {

// --- writing -------------------------------------------------------------------------------------

// `bytes` of `value`, the most significant first, behind `tag`.
void MsgpackWriter::Head(uint8_t tag, uint64_t value, int bytes) {
  out_.push_back(static_cast<char>(tag));
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) {
    out_.push_back(static_cast<char>(value >> shift));
  }
}

void MsgpackWriter::Uint(uint64_t value) {
  if (value < 0x80) return Head(static_cast<uint8_t>(value), 0, 0);
  if (value <= UINT8_MAX) return Head(0xcc, value, 1);
  if (value <= UINT16_MAX) return Head(0xcd, value, 2);
  if (value <= UINT32_MAX) return Head(0xce, value, 4);
  Head(0xcf, value, 8);
}

void MsgpackWriter::Int(int64_t value) {
  const auto bits = static_cast<uint64_t>(value);
  if (value >= 0) return Uint(bits);
  if (value >= -32) return Head(static_cast<uint8_t>(bits), 0, 0);
  if (value >= INT8_MIN) return Head(0xd0, bits, 1);
  if (value >= INT16_MIN) return Head(0xd1, bits, 2);
  if (value >= INT32_MIN) return Head(0xd2, bits, 4);
  Head(0xd3, bits, 8);
}

void MsgpackWriter::Double(double value) { Head(0xcb, std::bit_cast<uint64_t>(value), 8); }

void MsgpackWriter::Str(std::string_view text) {
  if (text.size() < 32) {
    Head(static_cast<uint8_t>(0xa0 | text.size()), 0, 0);
  } else if (text.size() <= UINT8_MAX) {
    Head(0xd9, text.size(), 1);
  } else if (text.size() <= UINT16_MAX) {
    Head(0xda, text.size(), 2);
  } else {
    Head(0xdb, text.size(), 4);
  }
  out_.append(text);
}

void MsgpackWriter::Array(uint32_t elements) {
  if (elements < 16) return Head(static_cast<uint8_t>(0x90 | elements), 0, 0);
  if (elements <= UINT16_MAX) return Head(0xdc, elements, 2);
  Head(0xdd, elements, 4);
}

void MsgpackWriter::Map(uint32_t entries) {
  if (entries < 16) return Head(static_cast<uint8_t>(0x80 | entries), 0, 0);
  if (entries <= UINT16_MAX) return Head(0xde, entries, 2);
  Head(0xdf, entries, 4);
}

// --- reading -------------------------------------------------------------------------------------

uint8_t MsgpackReader::Byte() {
  if (rest_.empty()) {
    Fail();
    return 0;
  }
  const auto byte = static_cast<uint8_t>(rest_.front());
  rest_.remove_prefix(1);
  return byte;
}

uint64_t MsgpackReader::BigEndian(int bytes) {
  uint64_t value = 0;
  for (const char byte : Bytes(static_cast<uint64_t>(bytes))) {
    value = value << 8 | static_cast<uint8_t>(byte);
  }
  return value;
}

std::string_view MsgpackReader::Bytes(uint64_t size) {
  if (size > rest_.size()) {
    Fail();
    return {};
  }
  const std::string_view bytes = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return bytes;
}

uint32_t MsgpackReader::Array() {
  const uint8_t tag = Byte();
  if (tag >= 0x90 && tag <= 0x9f) return tag & 0x0f;
  if (tag == 0xdc) return static_cast<uint32_t>(BigEndian(2));
  if (tag == 0xdd) return static_cast<uint32_t>(BigEndian(4));
  Fail();
  return 0;
}

uint32_t MsgpackReader::Map() {
  const uint8_t tag = Byte();
  if (tag >= 0x80 && tag <= 0x8f) return tag & 0x0f;
  if (tag == 0xde) return static_cast<uint32_t>(BigEndian(2));
  if (tag == 0xdf) return static_cast<uint32_t>(BigEndian(4));
  Fail();
  return 0;
}

std::string_view MsgpackReader::Str() {
  const uint8_t tag = Byte();
  if (tag >= 0xa0 && tag <= 0xbf) return Bytes(tag & 0x1f);
  if (tag >= 0xd9 && tag <= 0xdb) return Bytes(BigEndian(1 << (tag - 0xd9)));
  Fail();
  return {};
}

uint64_t MsgpackReader::Integer() {
  const uint8_t tag = Byte();
  if (tag < 0x80) return failed_ ? 0 : tag;
  if (tag >= 0xe0) return static_cast<uint64_t>(static_cast<int8_t>(tag));
  if (tag >= 0xcc && tag <= 0xcf) return BigEndian(1 << (tag - 0xcc));
  if (tag >= 0xd0 && tag <= 0xd3) {
    const int bytes = 1 << (tag - 0xd0);
    const int unused = 64 - 8 * bytes;
    return static_cast<uint64_t>(static_cast<int64_t>(BigEndian(bytes) << unused) >> unused);
  }
  Fail();
  return 0;
}

double MsgpackReader::Double() {
  if (Byte() == 0xcb) return std::bit_cast<double>(BigEndian(8));
  Fail();
  return 0;
}

bool MsgpackReader::Nil() {
  if (rest_.empty() || static_cast<uint8_t>(rest_.front()) != 0xc0) return false;
  rest_.remove_prefix(1);
  return true;
}

std::string_view MsgpackReader::Any() {
  const std::string_view from = rest_;
  SkipOne(0);
  return failed_ ? std::string_view() : from.substr(0, from.size() - rest_.size());
}

void MsgpackReader::SkipOne(int depth) {
  if (rest_.empty() || depth > kMaxDepth) return Fail();
  const auto tag = static_cast<uint8_t>(rest_.front());
  const auto skip_all = [this, depth](uint64_t values) {
    for (uint64_t i = 0; i < values && !failed_; ++i) SkipOne(depth + 1);
  };
  if ((tag & 0xf0) == 0x90 || tag == 0xdc || tag == 0xdd) return skip_all(Array());
  if ((tag & 0xf0) == 0x80 || tag == 0xde || tag == 0xdf) return skip_all(uint64_t{2} * Map());
  if ((tag & 0xe0) == 0xa0 || (tag >= 0xd9 && tag <= 0xdb)) return void(Str());
  if (tag < 0x80 || tag >= 0xe0 || (tag >= 0xcc && tag <= 0xd3)) return void(Integer());
  Byte();
  if (tag == 0xc0 || tag == 0xc2 || tag == 0xc3) return;  // nil, false, true
  if (tag >= 0xc4 && tag <= 0xc6) return void(Bytes(BigEndian(1 << (tag - 0xc4))));  // bytes
  if (tag == 0xca || tag == 0xcb) return void(Bytes(tag == 0xca ? 4 : 8));           // float
  Fail();  // Extensions say something to those who made them.
}

}  // namespace kvd
