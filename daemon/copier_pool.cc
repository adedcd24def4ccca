#include "daemon/copier_pool.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "proto/types/check.h"
#include "proto/types/kill_point.h"

namespace kvd {
namespace {

// A reply is sent once this much was copied: the client can use the room again while we go on.
constexpr uint64_t kReplyBytes = 256u << 10;
constexpr Nanos kLookOn = 100'000;  // About what a client takes to copy 2 MiB into staging.

// Makes of `count` requests of version 1, packed at the start of the room, those of today.
void FromVersion1(FillRequest* requests, size_t count) {
  for (size_t i = count; i-- > 0;) {  // From the end: each takes more room than before.
    FillRequestV1 old;
    std::memcpy(&old, reinterpret_cast<const char*>(requests) + i * sizeof old, sizeof old);
    requests[i] = {.reservation_id = old.reservation_id,
                   .staging_offset = old.staging_offset,
                   .index = old.index,
                   .length = old.length,
                   .whole = 1};
  }
}

}  // namespace

CopierPool::CopierPool(FillBoard& board, Inbox& inbox, const Copier& copier, const Options& options)
    : board_(board), inbox_(inbox), copier_(copier), options_(options) {
  KVD_CHECK(options.threads > 0);
  for (uint32_t i = 0; i < options.threads + 1; ++i) {
    auto worker = std::make_unique<Worker>();
    worker->epoll = epoll_create1(EPOLL_CLOEXEC);
    worker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    KVD_CHECK(worker->epoll >= 0 && worker->wake >= 0) << std::strerror(errno);
    epoll_event event{.events = EPOLLIN, .data = {.fd = worker->wake}};
    KVD_CHECK(epoll_ctl(worker->epoll, EPOLL_CTL_ADD, worker->wake, &event) == 0);
    workers_.push_back(std::move(worker));
  }
  for (auto& worker : workers_) {
    worker->thread = std::thread([this, &worker = *worker] { Run(worker); });
  }
}

CopierPool::~CopierPool() {
  for (auto& worker : workers_) {
    absl::MutexLock lock(&worker->mu);
    worker->stop = true;
    eventfd_write(worker->wake, 1);
  }
  for (auto& worker : workers_) {
    worker->thread.join();
    for (const auto& [fd, channel] : worker->channels) close(fd);
    for (const Job& job : worker->jobs) {
      if (const auto* channel = std::get_if<Channel>(&job)) close(channel->fd);
    }
    close(worker->wake);
    close(worker->epoll);
  }
}

bool CopierPool::Enqueue(Worker& worker, Job job, bool bounded) {
  {
    absl::MutexLock lock(&worker.mu);
    if (bounded && worker.jobs.size() >= options_.max_jobs) return false;
    worker.jobs.push_back(std::move(job));
  }
  eventfd_write(worker.wake, 1);
  return true;
}

void CopierPool::AddChannel(uint32_t session, int fd, std::shared_ptr<const StagedBytes> staging,
                            uint32_t protocol) {
  Enqueue(*workers_[session % options_.threads], Channel{session, fd, std::move(staging), protocol},
          false);
}

void CopierPool::EndChannels(uint32_t session) {
  Enqueue(*workers_[session % options_.threads], EndChannelsJob{session}, false);
}

bool CopierPool::Fill(FillJob job) {
  Worker& worker = *workers_[job.session % options_.threads];
  return Enqueue(worker, std::move(job), true);
}

bool CopierPool::Verify(VerifyJob job) {
  return Enqueue(*workers_[next_.fetch_add(1, std::memory_order_relaxed) % options_.threads], job,
                 true);
}

void CopierPool::MakeRegion(uint32_t region, uint64_t bytes) {
  Enqueue(*workers_.back(), MakeRegionJob{region, bytes}, false);
}

void CopierPool::Run(Worker& worker) {
  std::deque<Job> jobs;
  epoll_event events[64];
  Nanos last_work = 0;
  while (true) {
    // A put is many messages on end, and to be woken for each would cost more than looking: so who
    // has just worked looks on for a moment, as long as nobody else wants this CPU.
    const bool warm = clock_.Now() - last_work < kLookOn;
    const int n = epoll_wait(worker.epoll, events, 64, warm ? 0 : -1);
    if (n == 0) {
      sched_yield();
      continue;
    }
    for (int i = 0; i < n; ++i) {
      if (events[i].data.fd == worker.wake) {
        eventfd_t ignored;
        eventfd_read(worker.wake, &ignored);
        {
          absl::MutexLock lock(&worker.mu);
          if (worker.stop) return;
          jobs.swap(worker.jobs);
        }
        for (Job& job : jobs) RunJob(worker, job);
        jobs.clear();
        continue;
      }
      last_work = clock_.Now();
      const auto channel = worker.channels.find(events[i].data.fd);
      if (channel == worker.channels.end() || ServeChannel(channel->second)) continue;
      close(channel->first);  // Also takes it out of the epoll set.
      worker.channels.erase(channel);
    }
  }
}

// Serves one message. False: the channel is over.
bool CopierPool::ServeChannel(const Channel& channel) {
  // Whoever waits for this CPU has little to do (a caller, the control thread); we have much.
  sched_yield();
  FillRequest requests[kMaxFillsPerMessage];
  const ssize_t size = recv(channel.fd, requests, sizeof requests, MSG_DONTWAIT | MSG_TRUNC);
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  const size_t each = channel.protocol < 2 ? sizeof(FillRequestV1) : sizeof(FillRequest);
  if (size == 0 || size % each != 0 || size > ssize_t{kMaxFillsPerMessage} * ssize_t(each)) {
    return false;
  }
  if (channel.protocol < 2) FromVersion1(requests, static_cast<size_t>(size) / each);

  FillReply replies[kMaxFillsPerMessage];
  size_t ready = 0;
  uint64_t copied = 0;
  const size_t count = static_cast<size_t>(size) / each;
  for (size_t i = 0; i < count; ++i) {
    replies[ready++] = FillOne(channel.session, *channel.staging, requests[i]);
    copied += requests[i].length;
    if (copied < kReplyBytes && i + 1 < count) continue;
    // A client that does not take its replies has more fills in flight than it may.
    const size_t bytes = ready * sizeof(FillReply);
    if (send(channel.fd, replies, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) !=
        static_cast<ssize_t>(bytes)) {
      return false;
    }
    ready = 0;
    copied = 0;
  }
  return true;
}

FillReply CopierPool::FillOne(uint32_t session, const StagedBytes& staging,
                              const FillRequest& request) {
  FillReply reply{.index = request.index, .status = FillStatus::kInvalid};
  const absl::Span<const std::byte> bytes = staging.bytes();
  if (request.staging_offset <= bytes.size() &&
      request.length <= bytes.size() - request.staging_offset) {
    const FillBoard::Ticket ticket = board_.Begin(session, request.reservation_id,
                                                  {.index = request.index,
                                                   .offset = request.part_offset,
                                                   .length = request.length,
                                                   .whole = request.whole != 0});
    reply.status = ticket.status;
    if (ticket.status == FillStatus::kOk) {
      KVD_KILL_POINT("fill.before_copy");
      // The sum is that of the bytes stored, whatever the client does to its staging meanwhile.
      reply.sum =
          copier_.CopySum({ticket.address, request.length},
                          bytes.subspan(request.staging_offset, request.length), CopyUse::kMemory);
      KVD_KILL_POINT("fill.copied");
      if (board_.End(request.reservation_id, request.index, reply.sum)) {
        inbox_.Post(FillsDone{request.reservation_id});
      }
      filled_bytes_.fetch_add(request.length, std::memory_order_relaxed);
      KVD_KILL_POINT("fill.told");
    }
  }
  if (reply.status != FillStatus::kOk) refused_fills_.fetch_add(1, std::memory_order_relaxed);
  return reply;
}

void CopierPool::RunJob(Worker& worker, Job& job) {
  if (auto* fill = std::get_if<FillJob>(&job)) {
    for (const FillRequest& request : fill->fills) {
      FillOne(fill->session, *fill->staging, request);
    }
    inbox_.Post(FillsDone{fill->reservation_id});
  } else if (auto* verify = std::get_if<VerifyJob>(&job)) {
    inbox_.Post(Verified{verify->part, copier_.Sum(verify->bytes) == verify->sum});
  } else if (auto* make = std::get_if<MakeRegionJob>(&job)) {
    inbox_.Post(RegionMade{make->region, options_.make_region
                                             ? options_.make_region(make->bytes)
                                             : MemoryRegion::Create(make->bytes, options_.pages)});
  } else if (auto* end = std::get_if<EndChannelsJob>(&job)) {
    absl::erase_if(worker.channels, [&](const auto& channel) {
      if (channel.second.session != end->session) return false;
      close(channel.first);  // Also takes it out of the epoll set.
      return true;
    });
  } else {
    auto& channel = std::get<Channel>(job);
    epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.fd = channel.fd}};
    if (epoll_ctl(worker.epoll, EPOLL_CTL_ADD, channel.fd, &event) == 0) {
      worker.channels[channel.fd] = std::move(channel);
    } else {
      close(channel.fd);
    }
  }
}

}  // namespace kvd
