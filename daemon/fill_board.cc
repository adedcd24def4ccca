#include "daemon/fill_board.h"

#include "proto/types/check.h"
#include "proto/types/checksum.h"

namespace kvd {

FillBoard::FillBoard(uint32_t max_reservations) : reservations_(size_t{max_reservations} + 1) {
  for (uint32_t i = max_reservations; i > 0; --i) free_.push_back(i);
}

FillBoard::Reservation* FillBoard::Find(uint64_t id) {
  return const_cast<Reservation*>(static_cast<const FillBoard*>(this)->Find(id));
}

const FillBoard::Reservation* FillBoard::Find(uint64_t id) const {
  const auto index = static_cast<uint32_t>(id);
  if (index == 0 || index >= reservations_.size()) return nullptr;
  const Reservation& reservation = reservations_[index];
  return reservation.open && reservation.sequence == id >> 32 ? &reservation : nullptr;
}

uint64_t FillBoard::Open(uint32_t session) {
  absl::MutexLock lock(&mu_);
  if (free_.empty()) return 0;
  const uint32_t index = free_.back();
  free_.pop_back();
  Reservation& reservation = reservations_[index];
  ++reservation.sequence;
  reservation.session = session;
  reservation.copying = 0;
  reservation.fillable = 0;
  reservation.full = 0;
  reservation.awaited = 0;
  reservation.open = true;
  reservation.closing = false;
  reservation.parts.clear();
  return uint64_t{reservation.sequence} << 32 | index;
}

void FillBoard::Append(uint64_t id, absl::Span<const Room> rooms) {
  absl::MutexLock lock(&mu_);
  Reservation* reservation = Find(id);
  KVD_CHECK(reservation != nullptr) << id;
  for (const Room& room : rooms) {
    reservation->parts.push_back(Part{.room = room});
    reservation->fillable += room.length > 0;
  }
}

FillBoard::Part FillBoard::Get(uint64_t id, uint32_t index) const {
  absl::MutexLock lock(&mu_);
  const Reservation* reservation = Find(id);
  KVD_CHECK(reservation != nullptr && index < reservation->parts.size()) << id << " " << index;
  return reservation->parts[index];
}

bool FillBoard::Close(uint64_t id) {
  absl::MutexLock lock(&mu_);
  Reservation* reservation = Find(id);
  KVD_CHECK(reservation != nullptr) << id;
  reservation->closing = true;
  if (reservation->copying > 0) return false;
  reservation->open = false;
  free_.push_back(static_cast<uint32_t>(id));
  return true;
}

bool FillBoard::Idle(uint64_t id) const {
  absl::MutexLock lock(&mu_);
  const Reservation* reservation = Find(id);
  return reservation == nullptr || reservation->copying == 0;
}

uint32_t FillBoard::fillable(uint64_t id) const {
  absl::MutexLock lock(&mu_);
  const Reservation* reservation = Find(id);
  KVD_CHECK(reservation != nullptr) << id;
  return reservation->fillable;
}

bool FillBoard::Await(uint64_t id, uint32_t parts) {
  absl::MutexLock lock(&mu_);
  Reservation* reservation = Find(id);
  KVD_CHECK(reservation != nullptr) << id;
  const bool there = reservation->full >= parts;
  reservation->awaited = there ? 0 : parts;
  return there;
}

uint32_t FillBoard::copying() const {
  absl::MutexLock lock(&mu_);
  return copying_;
}

FillBoard::Ticket FillBoard::Begin(uint32_t session, uint64_t id, const Piece& piece) {
  absl::MutexLock lock(&mu_);
  Reservation* reservation = Find(id);
  if (reservation == nullptr || reservation->session != session || reservation->closing) {
    return {.status = FillStatus::kGone};
  }
  if (piece.index >= reservation->parts.size()) return {.status = FillStatus::kInvalid};
  Part& part = reservation->parts[piece.index];
  if (part.state != State::kEmpty || piece.offset != part.filled || piece.length == 0 ||
      piece.length > part.room.length - part.filled ||
      (piece.whole && piece.length != part.room.length)) {
    return {.status = FillStatus::kInvalid};
  }
  part.state = State::kCopying;
  part.copying = piece.length;
  ++reservation->copying;
  ++copying_;
  return {.status = FillStatus::kOk, .address = part.room.address + piece.offset};
}

bool FillBoard::End(uint64_t id, uint32_t index, uint32_t sum) {
  absl::MutexLock lock(&mu_);
  Reservation* reservation = Find(id);
  KVD_CHECK(reservation != nullptr && index < reservation->parts.size()) << id << " " << index;
  Part& part = reservation->parts[index];
  part.sum = part.filled == 0 ? sum : Crc32cConcat(part.sum, sum, part.copying);
  part.filled += part.copying;
  part.state = part.filled == part.room.length ? State::kFull : State::kEmpty;
  reservation->full += part.state == State::kFull;
  --copying_;
  const bool idle = --reservation->copying == 0 && reservation->closing;
  const bool enough = reservation->awaited > 0 && reservation->full >= reservation->awaited;
  if (enough) reservation->awaited = 0;
  return idle || enough;
}

}  // namespace kvd
