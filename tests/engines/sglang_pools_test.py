#!/usr/bin/env python3
"""The storage backend under SGLang's own cache and controller, without a model: sglang_pools_test.py KVD SOURCE_ROOT
[unittest arguments], with SGLang's environment. For the pools that no model has which runs on a CPU.

Pages go from "device" memory through the host pool to the daemon, are forgotten, and come back the same way; the oracle
is the bytes.
"""

import array
import inspect
import json
import os
import pathlib
import sys
import time
import unittest

KVD, ROOT = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT / "client/python"), str(ROOT / "tests/client/python")]

import sglang_on_cpu  # noqa: E402, F401  First.
import torch  # noqa: E402
from daemon import PATIENCE, Daemon  # noqa: E402
from kvd.sglang import KvdStorage, plugin  # noqa: E402
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator  # noqa: E402
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator  # noqa: E402
from sglang.srt.mem_cache.base_prefix_cache import (CacheRequestHandle, InitLoadBackParams,  # noqa: E402
                                                    InsertParams, MatchPrefixParams)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage  # noqa: E402
from sglang.srt.mem_cache.memory_pool import (MHATokenToKVPool, MLATokenToKVPool,  # noqa: E402
                                              ReqToTokenPool)
from sglang.srt.mem_cache.radix_cache import RadixKey  # noqa: E402
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool  # noqa: E402
from sglang.srt.mem_cache.unified_cache.components import ComponentType  # noqa: E402
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache  # noqa: E402
from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402
from sglang.srt.runtime_context import get_context, get_parallel  # noqa: E402

PAGE = 16
SIZE = 64 * PAGE  # Tokens of a pool.
WINDOW = 4 * PAGE
TOKENS = 32 * PAGE

plugin.install()
HookRegistry.apply_hooks()
get_parallel().override_permanently(tp_rank=0, pp_rank=0, attn_tp_rank=0, attn_dp_rank=0, attn_cp_rank=0,
                                    attn_dcp_rank=0)


def mha():
    pool = MHATokenToKVPool(SIZE, PAGE, torch.bfloat16, 2, 16, 2, "cpu", False)
    return pool, pool.k_buffer + pool.v_buffer, []


def mla():
    pool = MLATokenToKVPool(SIZE, PAGE, torch.bfloat16, kv_lora_rank=32, qk_rope_head_dim=16, layer_num=2,
                            device="cpu", enable_memory_saver=False)
    return pool, list(pool.kv_buffer), []


def swa():
    pool = SWAKVPool(SIZE, SIZE, PAGE, torch.bfloat16, 2, 16, swa_attention_layer_ids=[1, 3],
                     full_attention_layer_ids=[0, 2], device="cpu")
    return (pool, pool.full_kv_pool.k_buffer + pool.full_kv_pool.v_buffer,
            pool.swa_kv_pool.k_buffer + pool.swa_kv_pool.v_buffer)


class Cache:
    """SGLang's cache of one engine, with memory that is filled at random in the place of a model's."""

    def __init__(self, endpoint, make, layout="page_first", io="kernel"):
        config = {"backend_name": "kvd", "module_path": "kvd.sglang", "class_name": "KvdStorage", "interface_v1": 1,
                  "hicache_storage_pass_prefix_keys": True, "allocator": "shm", "endpoint": endpoint,
                  "prefetch_threshold": PAGE, "sliding_window_tokens": WINDOW, "prefetch_timeout_base": PATIENCE,
                  "lookup_timeout_ms": 20000, "load_timeout_ms": 20000, "save_timeout_ms": 20000}
        self._args = get_context().override_server_args(
            device="cpu", page_size=PAGE, enable_hierarchical_cache=True, hicache_ratio=2.0, hicache_mem_layout=layout,
            hicache_io_backend=io, hicache_write_policy="write_through", hicache_storage_backend="dynamic",
            hicache_storage_prefetch_policy="wait_complete", served_model_name="tiny",
            hicache_storage_backend_extra_config=json.dumps(config))
        args = self._args.install()
        pool, self.full, self.side = make()
        windowed = bool(self.side)
        if windowed:
            self.allocator = SWATokenToKVPoolAllocator(SIZE, SIZE, PAGE, torch.bfloat16, "cpu", pool, need_sort=False)
        else:
            self.allocator = PagedTokenToKVPoolAllocator(SIZE, PAGE, torch.bfloat16, "cpu", pool, need_sort=False)
        params = CacheInitParams(
            disable=False, req_to_token_pool=ReqToTokenPool(8, 4096, "cpu", False),
            token_to_kv_pool_allocator=self.allocator, page_size=PAGE,
            tree_components=(ComponentType.FULL, ComponentType.SWA) if windowed else (ComponentType.FULL,),
            sliding_window_size=WINDOW if windowed else None)
        self.cache = UnifiedRadixCache(params)
        self.cache.init_hicache(args, params)
        generator = torch.Generator().manual_seed(7)
        for buffer in self.full + self.side:
            buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float32).to(buffer.dtype))

    def end(self):
        self.cache.detach_storage_backend()
        self._args.restore()

    def until(self, what):
        """Step after step, as SGLang's own loop takes them: only a step sees what its threads have done."""
        end = time.monotonic() + PATIENCE
        while not what():
            self.cache.check_hicache_events()
            os.sched_yield()
            if time.monotonic() > end:
                raise AssertionError("it takes too long")

    def _room(self, tokens):
        if not self.side:
            return self.allocator.alloc(tokens)
        zero, all_of_it = torch.zeros(1, dtype=torch.int64), torch.tensor([tokens])
        return self.allocator.alloc_extend(zero, zero, all_of_it, all_of_it, torch.tensor([-1]), tokens)

    def bytes_of(self, indices):
        """Of the tokens, and of the last of them in the window."""
        taken = [buffer[indices] for buffer in self.full]
        if self.side:
            window = self.allocator.translate_loc_from_full_to_swa(indices)[-WINDOW:]
            taken += [buffer[window] for buffer in self.side]
        return [piece.contiguous().view(torch.uint8).numpy().tobytes() for piece in taken]

    def store(self, tokens):
        indices = self._room(len(tokens))
        self.cache.insert(InsertParams(key=RadixKey(array.array("q", tokens)), value=indices))
        self.until(lambda: not self.cache.ongoing_write_through and not self.cache.ongoing_backup)
        return self.bytes_of(indices)

    def forget(self):
        self.cache.reset()
        self.allocator.clear()
        for buffer in self.full + self.side:
            buffer.zero_()
        self.cache.cache_controller.storage_host_pool.kv_buffer.zero_()

    def fetch(self, tokens):
        """How many tokens came from storage, and the bytes of those that are on the "device" then."""
        key = RadixKey(array.array("q", tokens))
        handle = CacheRequestHandle("request", 0)
        match = self.cache.match_prefix(MatchPrefixParams(key=key))
        matched = match.device_prefix_len + match.host_hit_length
        self.cache.prefetch_from_storage(
            handle, match.last_host_node, array.array("q", tokens[matched:]),
            self.cache.get_last_hash_value(match.last_host_node),
            self.cache.get_prefix_hash_values(match.last_host_node),
            matched_prefix_tokens=array.array("q", tokens[:matched]))
        self.until(lambda: self.cache.check_prefetch_progress(handle))
        match = self.cache.match_prefix(MatchPrefixParams(key=key))
        request = type("Request", (), {"last_node": match.last_device_node, "mamba_host_hit_length": 0,
                                       "swa_host_hit_length": match.swa_host_hit_length, "rid": "request",
                                       "kv": type("Kv", (), {"mamba_pool_idx": None})()})()
        self.cache.init_load_back(InitLoadBackParams(
            best_match_node=match.best_match_node, host_hit_length=match.host_hit_length, req=request))
        self.cache.ready_to_load_host_cache()
        self.until(lambda: not self.cache.ongoing_load_back)
        match = self.cache.match_prefix(MatchPrefixParams(key=key))
        return (self.cache.pop_prefetch_loaded_tokens(handle),
                self.bytes_of(self.cache.path_device_indices(match.last_device_node)))


class PoolsTest(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon(KVD)
        self.daemon.start()
        self.addCleanup(self.daemon.__exit__)

    def comes_back(self, make, **options):
        tokens = list(range(1000, 1000 + TOKENS))
        cache = Cache(self.daemon.endpoint, make, **options)
        self.addCleanup(cache.end)
        stored = cache.store(tokens)
        cache.forget()
        loaded, there = cache.fetch(tokens)
        self.assertEqual((loaded, there == stored), (TOKENS, True))
        return cache, tokens

    def test_the_pools_of_every_layout(self):
        for make, layout, io in ((mha, "page_first", "kernel"), (mha, "page_head", "kernel"),
                                 (mha, "layer_first", "direct"), (mha, "page_first_direct", "direct"),
                                 (mla, "page_first", "kernel"), (mla, "layer_first", "kernel"),
                                 (mla, "page_first_direct", "direct")):
            with self.subTest(f"{make.__name__} {layout}"):
                cache, tokens = self.comes_back(make, layout=layout, io=io)
                # What goes on below a stored prefix has its place there.
                branch = tokens[:TOKENS // 2] + list(range(50000, 50000 + TOKENS // 4))
                cache.store(branch)
                cache.forget()
                self.assertEqual(cache.fetch(branch)[0], len(branch))
                self.doCleanups()
                self.setUp()

    def test_a_sliding_window(self):
        self.comes_back(swa)

    def test_another_cache_of_the_node(self):
        tokens = list(range(TOKENS))
        first = Cache(self.daemon.endpoint, swa)
        stored = first.store(tokens)
        first.end()
        second = Cache(self.daemon.endpoint, swa)
        second.forget()
        self.assertEqual(second.fetch(tokens), (TOKENS, stored))
        second.end()

    def test_the_interface_is_that_of_this_sglang(self):
        for name, theirs in inspect.getmembers(HiCacheStorage, inspect.isfunction):
            ours = getattr(KvdStorage, name)
            with self.subTest(name):
                self.assertEqual(list(inspect.signature(ours).parameters), list(inspect.signature(theirs).parameters))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
