"""Where the bytes of an object lie, without a copy and without knowing its library.

An object is whatever has the buffer protocol (bytes, bytearray, memoryview, mmap, array, NumPy), or
`data_ptr()` and `is_contiguous()` as the tensors of PyTorch have; those must be in host memory. Its
bytes must be contiguous. `At` names bytes by their address, for engines that do so themselves.
"""

import ctypes
import itertools
from typing import Any, List, Sequence, Union

from .library import Buffer

Bytes = Any  # Whatever the docstring above says; typing has no name for it before Python 3.12.
# One object for each part, or a single one in which all parts stand back to back.
Buffers = Union[Bytes, Sequence[Bytes]]


class At:
    """`size` bytes at `address`, which the caller keeps there for the time of the call; writable where
    the call writes."""
    __slots__ = ("address", "size")

    def __init__(self, address: int, size: int):
        self.address, self.size = address, size


class _PyBuffer(ctypes.Structure):
    _fields_ = [("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
                ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
                ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p),
                ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p),
                ("internal", ctypes.c_void_p)]


_PyObject_GetBuffer = ctypes.pythonapi.PyObject_GetBuffer
_PyObject_GetBuffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_PyBuffer_Release = ctypes.pythonapi.PyBuffer_Release
_PyBuffer_Release.argtypes = [ctypes.POINTER(_PyBuffer)]
_PyBuffer_Release.restype = None
_SIMPLE, _WRITABLE = 0, 1


class Borrowed:
    """The bytes of objects for the time of one call, in which they can be neither freed nor resized."""

    def __init__(self, writable: bool):
        self._flags = _WRITABLE if writable else _SIMPLE
        self._held: List[_PyBuffer] = []

    def __enter__(self) -> "Borrowed":
        return self

    def __exit__(self, *_: object) -> None:
        for view in self._held:
            _PyBuffer_Release(ctypes.byref(view))

    def locate(self, thing: Bytes) -> "tuple[int, int]":
        """Address and size in bytes. TypeError or BufferError says what is wrong with it."""
        if isinstance(thing, At):
            return thing.address, thing.size
        pointer = getattr(thing, "data_ptr", None)
        if pointer is not None:
            if thing.device.type != "cpu":
                raise TypeError(f"a tensor on {thing.device}: copy it to the host first")
            if not thing.is_contiguous():
                raise BufferError("a tensor that is not contiguous")
            return pointer(), thing.numel() * thing.element_size()
        view = _PyBuffer()
        _PyObject_GetBuffer(thing, ctypes.byref(view), self._flags)
        self._held.append(view)
        return view.buf or 0, view.len

    def array(self, things: Buffers, sizes: Sequence[int]) -> "ctypes.Array[Buffer]":
        """One entry for each of `sizes`, in bytes; their sum, where `things` is a single object."""
        if not isinstance(things, (list, tuple)):
            address, size = self.locate(things)
            if size != sum(sizes):
                raise ValueError(f"{size} bytes for parts of {sum(sizes)} in all")
            places = itertools.accumulate(sizes, initial=address)
            return (Buffer * len(sizes))(*zip(places, sizes))
        if len(things) != len(sizes):
            raise ValueError(f"{len(things)} buffers for {len(sizes)} parts")
        return (Buffer * len(sizes))(*map(self.locate, things))
