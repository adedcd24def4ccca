// Takes a device out that fails or hangs, and back in when a probe succeeds.
//
// Out: nothing ended for `hung_after` though something was in flight, or more than one percent of
// the last 1,000 jobs failed, at least ten. While it is out a probe is due every `probe_every`.
//
// Threads: one. Time is an argument.

#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>

#include "proto/types/clock.h"

namespace kvd {

class DeviceBreaker {
 public:
  struct Options {
    Nanos hung_after = 2 * kSecond;
    Nanos probe_every = 5 * kSecond;
  };
  explicit DeviceBreaker(Options options) : options_(options) {}

  bool out() const { return out_; }
  uint32_t changes() const { return changes_; }  // Times it went out or came back.

  // A job was given to the device; of how many that are in flight now.
  void Began(uint32_t in_flight, Nanos now) {
    if (in_flight == 1) progress_ = now;
  }
  // The device ended a job, well or not. Not one that it dropped before it began.
  void Ended(bool ok, Nanos now) {
    progress_ = now;
    failures_ += static_cast<int>(!ok) - static_cast<int>(failed_[next_]);
    failed_[next_] = !ok;
    next_ = (next_ + 1) % kWindow;
    if (!out_ && failures_ >= kFailures) SetOut(true, now);
  }
  // Looks whether the device hangs.
  void Check(uint32_t in_flight, Nanos now) {
    if (!out_ && in_flight > 0 && now - progress_ >= options_.hung_after) SetOut(true, now);
  }
  // When Check() could say so.
  Nanos CheckAt() const { return progress_ + options_.hung_after; }

  Nanos ProbeAt() const { return probe_at_; }  // While it is out.
  void ProbeBegan(Nanos now) { probe_at_ = now + options_.probe_every; }
  void ProbeEnded(bool ok, Nanos now) {
    if (!out_ || !ok) return;
    failed_.reset();
    failures_ = 0;
    progress_ = now;
    SetOut(false, now);
  }

 private:
  static constexpr size_t kWindow = 1000;
  static constexpr int kFailures = 10;

  void SetOut(bool out, Nanos now) {
    out_ = out;
    ++changes_;
    probe_at_ = now + options_.probe_every;
  }

  const Options options_;
  bool out_ = false;
  uint32_t changes_ = 0;
  Nanos progress_ = 0;
  Nanos probe_at_ = 0;
  std::bitset<kWindow> failed_;
  size_t next_ = 0;
  int failures_ = 0;
};

}  // namespace kvd
