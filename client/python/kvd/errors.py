"""What can go wrong, one exception for each status of kvd.h. A miss is none of them."""


class KvdError(Exception):
    """Any error of the library. `code` is the number in kvd.h."""
    code = 2


class Cancelled(KvdError):
    code = 1


class InvalidArgument(KvdError, ValueError):
    """A mistake of the caller; the text names the field."""
    code = 3


class DeadlineExceeded(KvdError, TimeoutError):
    """The call's time was up: a miss."""
    code = 4


class NotFound(KvdError, KeyError):
    code = 5

    __str__ = Exception.__str__  # KeyError shows its text in quotes.


class AlreadyExists(KvdError):
    code = 6


class PermissionDenied(KvdError, PermissionError):
    code = 7


class ResourceExhausted(KvdError):
    """A bound was met, of the daemon or of this process."""
    code = 8


class FailedPrecondition(KvdError):
    """Not now, or not here: after fork(), or at an endpoint without shared memory."""
    code = 9


class Aborted(KvdError):
    code = 10


class OutOfRange(KvdError, IndexError):
    code = 11


class Unimplemented(KvdError, NotImplementedError):
    """This library or daemon is older than what the call asks for."""
    code = 12


class Internal(KvdError):
    code = 13


class Unavailable(KvdError, ConnectionError):
    """The daemon is away: a miss. A later call connects again by itself."""
    code = 14


class DataLoss(KvdError):
    code = 15


class Unauthenticated(KvdError):
    code = 16


_BY_CODE = {error.code: error for error in KvdError.__subclasses__()}


def of(code: int) -> type:
    """The class for a status; KvdError for one that a newer library may have."""
    return _BY_CODE.get(code, KvdError)
