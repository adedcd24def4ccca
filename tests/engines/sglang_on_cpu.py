"""What SGLang 0.5.23 lacks on a machine without a GPU. Import this before SGLang, at the top of the main script, so
that the processes that SGLang spawns do so too.

Modules for CUDA that SGLang imports everywhere and does not use on a CPU become empty ones. Then pinned memory, and
the copies between host pools and the engine's own, which are bound for GPUs alone: here they are PyTorch's, or of
memory by its address where SGLang gives addresses.
"""

import ctypes
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"


class _Names(type):
    """A class whose attributes are their own names, as those of an enumeration."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Base(metaclass=_Names):
    def __init__(self, *args, **options):
        pass

    def __init_subclass__(cls, **options):
        super().__init_subclass__()


class _Empty(types.ModuleType):
    """A module in which every class can be derived from, and every decorator leaves what it is given."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = (_Names(name, (_Base,), {"__module__": self.__name__}) if name[:1].isupper()
                else importlib.import_module(f"{self.__name__}.{name}"))
        setattr(self, name, made)
        return made

    def __call__(self, *args, **options):
        if len(args) == 1 and callable(args[0]) and not options:
            return args[0]
        return lambda function: function

    def __getitem__(self, index):
        return self

    def __bool__(self):
        return False


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots):
        self._roots = roots

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self._roots:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def _install_modules():
    missing = {name for name in ("triton", "torchvision") if importlib.util.find_spec(name) is None}
    import transformers.utils.import_utils as transformers
    transformers.is_torchvision_available()  # It remembers the answer, and stays off those paths.
    transformers.is_torchvision_v2_available()
    transformers.is_triton_available()
    sys.meta_path.insert(0, _Finder(missing))
    if "triton" in missing:
        import triton
        triton.__version__ = "3.0.0"
        triton.cdiv = lambda a, b: -(a // -b)
        triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length() if n > 0 else 1
    if importlib.util.find_spec("sgl_kernel") is None:
        kernel = types.ModuleType("sgl_kernel")
        kernel.__spec__ = importlib.machinery.ModuleSpec("sgl_kernel", None)
        kernel.__getattr__ = _kernel
        sys.modules["sgl_kernel"] = kernel


def _kernel(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def called(*args, **options):
        raise NotImplementedError(f"sgl_kernel.{name} on a CPU")
    called.__name__ = name
    return called


# ---- Copies, by the names and arguments of sgl_kernel.kvcacheio -----------------------------------


def _rows(target, target_stride, source, source_stride, target_rows, source_rows, size):
    for to, of in zip(target_rows.tolist(), source_rows.tolist()):
        ctypes.memmove(target + to * target_stride, source + of * source_stride, size)


def transfer_kv_per_layer(src_k, dst_k, src_v, dst_v, src_indices, dst_indices, item_size):
    dst_k[dst_indices] = src_k[src_indices]
    dst_v[dst_indices] = src_v[src_indices]


def transfer_kv_all_layer(src_k_layers, dst_k_layers, src_v_layers, dst_v_layers, src_indices, dst_indices,
                          item_size, num_layers):
    for sources, targets in ((src_k_layers, dst_k_layers), (src_v_layers, dst_v_layers)):
        for source, target in zip(sources.tolist(), targets.tolist()):
            _rows(target, item_size, source, item_size, dst_indices, src_indices, item_size)


def transfer_kv_per_layer_pf_lf(src_k, dst_k, src_v, dst_v, src_indices, dst_indices, layer_id, item_size,
                                src_layout_dim):
    dst_k[dst_indices] = src_k[src_indices, layer_id]
    dst_v[dst_indices] = src_v[src_indices, layer_id]


def transfer_kv_all_layer_lf_pf(src_k_layers, dst_k, src_v_layers, dst_v, src_indices, dst_indices, item_size,
                                dst_layout_dim, num_layers):
    for sources, target in ((src_k_layers, dst_k), (src_v_layers, dst_v)):
        for layer, source in enumerate(sources.tolist()):
            _rows(target.data_ptr() + layer * item_size, dst_layout_dim, source, item_size, dst_indices,
                  src_indices, item_size)


def transfer_kv_per_layer_ph_lf(src_k, dst_k, src_v, dst_v, src_indices, dst_indices, layer_id, item_size,
                                src_layout_dim, page_size, head_num):
    for source, target in ((src_k, dst_k), (src_v, dst_v)):  # A host page is [head, token, layer, dim].
        target[dst_indices] = source[src_indices // page_size, :, src_indices % page_size, layer_id, :]


def transfer_kv_all_layer_lf_ph(src_k_layers, dst_k, src_v_layers, dst_v, src_indices, dst_indices, item_size,
                                dst_layout_dim, num_layers, page_size, head_num):
    size = item_size // head_num
    for sources, target in ((src_k_layers, dst_k), (src_v_layers, dst_v)):
        for layer, source in enumerate(sources.tolist()):
            for to, of in zip(dst_indices.tolist(), src_indices.tolist()):
                page = to // page_size * page_size * dst_layout_dim
                for head in range(head_num):
                    place = page + ((head * page_size + to % page_size) * num_layers + layer) * size
                    ctypes.memmove(target.data_ptr() + place, source + of * item_size + head * size, size)


def transfer_kv_per_layer_mla(src, dst, src_indices, dst_indices, item_size):
    dst[dst_indices] = src[src_indices]


def transfer_kv_all_layer_mla(src_layers, dst_layers, src_indices, dst_indices, item_size, num_layers):
    for source, target in zip(src_layers.tolist(), dst_layers.tolist()):
        _rows(target, item_size, source, item_size, dst_indices, src_indices, item_size)


def transfer_kv_per_layer_mla_pf_lf(src, dst, src_indices, dst_indices, layer_id, item_size, src_layout_dim):
    dst[dst_indices] = src[src_indices, layer_id]


def transfer_kv_all_layer_mla_lf_pf(src_layers, dst, src_indices, dst_indices, item_size, dst_layout_dim,
                                    num_layers):
    for layer, source in enumerate(src_layers.tolist()):
        _rows(dst.data_ptr() + layer * item_size, dst_layout_dim, source, item_size, dst_indices, src_indices,
              item_size)


def transfer_kv_direct(src_layers, dst_layers, src_indices, dst_indices, page_size):
    for source, target in zip(src_layers, dst_layers):
        target[dst_indices] = source[src_indices]


def transfer_kv_per_layer_direct_pf_lf(src_ptrs, dst_ptrs, src_indices, dst_indices, layer_id, page_size):
    for source, target in zip(src_ptrs, dst_ptrs):
        target[dst_indices] = source[src_indices // page_size, layer_id, src_indices % page_size]


def transfer_kv_all_layer_direct_lf_pf(src_ptrs, dst_ptrs, src_indices, dst_indices, page_size):
    layers = len(src_ptrs) // len(dst_ptrs)
    for number, source in enumerate(src_ptrs):
        target = dst_ptrs[number // layers]
        target[dst_indices // page_size, number % layers, dst_indices % page_size] = source[src_indices]


def _install_copies():
    copies = {name: value for name, value in globals().items() if name.startswith("transfer_kv_")}
    pools = "sglang.srt.mem_cache"
    for name in (f"{pools}.pool_host.mha", f"{pools}.pool_host.mla", f"{pools}.pool_host.dsa",
                 f"{pools}.memory_pool_host"):
        module = importlib.import_module(name)
        for copy, value in copies.items():
            if not hasattr(module, copy):
                setattr(module, copy, value)
    from sglang.srt.mem_cache.pool_host import base
    plain = base.HostKVCache.__init__

    def unpinned(self, **options):
        plain(self, **{**options, "pin_memory": False})
    base.HostKVCache.__init__ = unpinned
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # 10 GiB are much for a test.


_install_modules()
import sglang  # noqa: E402, F401  After what it needs.

_install_copies()
