"""The engine's cache tensors as pages of opaque bytes.

Of a tensor only two things are known: which dimension counts blocks, and that all else belongs to one
block. So a new order of heads, or of keys and values, changes nothing here but `description`. Bytes are
copied in the order of the dimensions, wherever they lie.

Threads: two threads may copy at the same time, each with its own buffer. Nothing here orders copies
against the engine's own use of the pages.
"""

from typing import Any, Dict, List, Sequence, Tuple

import torch

from .layout import Refused, block_tokens, kind_of
from .messages import GroupLayout, WorkerLayout


class CannotDescribe(Refused):
    """A tensor that is not made of pages in a way known here."""


def as_pages(name: str, tensor: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A view [num_blocks, ...] of bytes that shares the storage of `tensor`. Some backends cut a block
    of the engine into several of their own, next to each other."""
    for dimension in (0, 1):  # Keys and values apart: [2, blocks, ...].
        if dimension >= tensor.dim() or dimension == 1 and tensor.shape[0] != 2:
            continue
        size = tensor.shape[dimension]
        if size >= num_blocks and size % num_blocks == 0:
            pages = tensor.movedim(dimension, 0)
            if size != num_blocks:
                pages = pages.unflatten(0, (num_blocks, size // num_blocks))
            if pages.stride(-1) == 1 or pages.element_size() == 1:
                return pages.view(torch.uint8) if pages.element_size() > 1 else pages
            break
    raise CannotDescribe(
        f"kvd: layer {name} has a cache of shape {tuple(tensor.shape)} and strides {tensor.stride()}, in "
        f"which {num_blocks} blocks are not found; use another attention backend, or report this")


class GroupPages:
    """The pages of one KV-cache group: of each block, what all its layers hold, one after another."""

    def __init__(self, layers: Sequence[Tuple[str, torch.Tensor]], num_blocks: int):
        distinct: Dict[Tuple[object, ...], torch.Tensor] = {}
        described: List[str] = []
        for name, tensor in layers:
            # Layers that share a cache are one.
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
            if place not in distinct:
                distinct[place] = as_pages(name, tensor, num_blocks)
                order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
                shape = [size for size in tensor.shape if size % num_blocks]
                described.append(f"{shape}{order}{tensor.dtype}")
        self._layers = list(distinct.values())
        self._bytes = [layer[0].numel() for layer in self._layers]
        self.page_bytes = sum(self._bytes)
        self.device = self._layers[0].device
        # Equal layers in short: "32*[2, 32, 64][0, 1, 2, 3]torch.float32".
        self.description = ";".join(
            f"{described.count(one)}*{one}" for one in dict.fromkeys(described))

    def gather(self, ids: torch.Tensor, target: torch.Tensor) -> None:
        """target[i] becomes the bytes of page ids[i]. Requires: target is [len(ids), page_bytes] of
        uint8, on the host or the pages' device; ids on the pages' device."""
        offset = 0
        for layer, size in zip(self._layers, self._bytes):
            pages = layer.index_select(0, ids).reshape(len(ids), size)
            target[:, offset:offset + size].copy_(pages, non_blocking=True)
            offset += size

    def scatter(self, source: torch.Tensor, ids: torch.Tensor) -> None:
        """The bytes of page ids[i] become source[i]. Requires: as above."""
        offset = 0
        for layer, size in zip(self._layers, self._bytes):
            pages = source[:, offset:offset + size].to(self.device, non_blocking=True)
            layer.index_copy_(0, ids, pages.reshape(len(ids), *layer.shape[1:]))
            offset += size


def check_reads_back(groups: Sequence[GroupPages], page: int) -> None:
    """Writes another pattern through `scatter` into `page` of every group and reads it back, so that a
    cache which was described wrongly is found before it holds anything. Leaves zeros. Raises
    CannotDescribe. Requires: nobody uses the page."""
    ids = [torch.tensor([page], device=group.device) for group in groups]
    for seed, group in enumerate(groups):
        pattern = ((torch.arange(group.page_bytes) * 31 + seed * 7) % 251).to(torch.uint8)
        read = torch.zeros(1, group.page_bytes, dtype=torch.uint8)
        group.scatter(pattern.reshape(1, -1), ids[seed])
        group.gather(ids[seed], read)
        if group.device.type != "cpu":
            torch.accelerator.synchronize()
        group.scatter(torch.zeros_like(read), ids[seed])
        if not torch.equal(read[0], pattern):
            raise CannotDescribe(f"kvd: a page of {group.description} does not read back as it was "
                                 "written; use another attention backend, or report this")


def describe(kv_cache_config: Any,
             kv_caches: "dict[str, torch.Tensor]") -> Tuple[List[GroupPages], WorkerLayout]:
    """The pages of a worker by group, and what they are, for the scheduler's side and the namespace.
    Raises CannotDescribe."""
    tokens = block_tokens(kv_cache_config)
    num_blocks = kv_cache_config.num_blocks
    pages: List[GroupPages] = []
    layouts: List[GroupLayout] = []
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        kind, window, replicated = kind_of(spec)
        pages.append(GroupPages([(name, kv_caches[name]) for name in group.layer_names
                                 if name in kv_caches], num_blocks))
        count = tokens // spec.block_size
        layouts.append(GroupLayout(kind, window, replicated, count, count * pages[-1].page_bytes,
                                   pages[-1].description))
    check_reads_back(pages, num_blocks - 1)  # Block 0 is the engine's own null block.
    return pages, WorkerLayout(tuple(layouts), _device(pages[0].device))


def _device(device: torch.device) -> str:
    """Kernels pack pages as suits the machine: AMX tiles on one CPU are rows on another."""
    if device.type == "cpu":
        capability = getattr(torch.backends.cpu, "get_cpu_capability", None)
        amx = getattr(torch._C._cpu, "_is_amx_tile_supported", lambda: None)()
        return f"cpu {capability() if capability else '?'} amx={amx}"
    properties = torch.cuda.get_device_properties(device)
    return f"{device.type} {getattr(properties, 'major', 0)}.{getattr(properties, 'minor', 0)}"
