// As much of MessagePack (github.com/msgpack/msgpack, spec.md) as KV events need: a writer that
// takes the shortest form of everything, as Python's msgpack and msgspec do, and a reader for bytes
// from anybody. Neither allocates, but for the string that is written to.
//
// Not a library, because what engines announce is read on the control thread and passed on as it
// came: msgpack-c sets memory aside for as many elements as a head claims, neither it nor
// msgpack-cxx (which brings Boost) says where in the bytes a value lies, and both would copy it.
// Python's msgpack reads in the tests what is written here.
//
// The reader goes on after a mistake without looking at bytes any more: what it gives then is zero
// or empty, and failed() says so. Check it once, at the end, and before a count is believed.
//
// Threads: values; each belongs to one thread.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvd {

class MsgpackWriter {
 public:
  explicit MsgpackWriter(std::string& out) : out_(out) {}  // Appends to `out`, which outlives this.

  void Nil() { out_.push_back('\xc0'); }
  void Uint(uint64_t value);
  void Int(int64_t value);
  void Double(double value);
  void Str(std::string_view text);  // UTF-8, shorter than 4 GiB.
  void Array(uint32_t elements);    // The elements follow.
  void Map(uint32_t entries);       // Key and value of each follow.
  void Raw(std::string_view packed) { out_.append(packed); }

 private:
  void Head(uint8_t tag, uint64_t value, int bytes);

  std::string& out_;
};

class MsgpackReader {
 public:
  explicit MsgpackReader(std::string_view packed) : rest_(packed) {}

  bool failed() const { return failed_; }
  bool at_end() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }

  // Each takes the next value, which must be of that kind.
  uint32_t Array();  // How many elements follow.
  uint32_t Map();    // How many entries follow.
  std::string_view Str();
  uint64_t Integer();  // Of a negative one the two's complement.
  double Double();

  // Takes the next value if it is nil.
  bool Nil();
  // Takes the next value, whatever it is, and gives its bytes. Fails where values nest deeper than
  // kMaxDepth.
  std::string_view Any();
  static constexpr int kMaxDepth = 8;

 private:
  uint8_t Byte();
  uint64_t BigEndian(int bytes);
  std::string_view Bytes(uint64_t size);
  void SkipOne(int depth);
  void Fail() {
    failed_ = true;
    rest_ = {};
  }

  std::string_view rest_;
  bool failed_ = false;
};

}  // namespace kvd
