// How many of the process's descriptors connections may take.
//
// Some are left for what serves the connections that are there: gRPC 1.51 makes one for each call
// that one of its threads waits in, and where there is none it takes the call for finished while
// it still writes into its memory. So a connection that would take one of the last is refused.
//
// Threads: safe from any.

#pragma once

namespace kvd {

// The threads of the stream and the operators' servers (about 80), a put of each stream (32), and
// what is opened for a moment. Where fewer than twice as many are allowed, half of those.
inline constexpr int kReservedDescriptors = 128;

// Whether `fd`, which was just made for a connection, is one of those that are left to others. A
// new descriptor has the lowest number that is free, so the number says how many there are.
bool IsReservedDescriptor(int fd);

}  // namespace kvd
