#!/usr/bin/env python3
"""Writes the tiny models of the tests: models.py FOLDER, with the environment of an engine.

Weights of the usual size (0.02) make all log-probabilities nearly equal, so that a damaged page would not
show. With 0.25 one flipped low bit of one page changes the digest of a 2,000-token prompt.
"""

import pathlib
import sys

import torch
from transformers import (DeepseekV2Config, DeepseekV2ForCausalLM, Gemma3ForCausalLM,
                          Gemma3TextConfig, LlamaConfig, LlamaForCausalLM)

COMMON = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
          "max_position_embeddings": 4096, "initializer_range": 0.25, "tie_word_embeddings": False}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(
        **COMMON, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32)),
    # Layers with a window of 256 tokens between layers with full attention: two groups.
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(
        **COMMON, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        sliding_window=256, layer_types=["sliding_attention", "full_attention"] * 2)),
    # MLA: one latent cache, the same on every rank.
    "deepseek": lambda: DeepseekV2ForCausalLM(DeepseekV2Config(
        **COMMON, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=512,
        q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128,
        n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=64,
        first_k_dense_replace=1, n_group=1, topk_group=1, topk_method="greedy")),
}

# Wide enough that a prompt of 2,000 tokens takes a CPU its time; without weights, which an engine makes up.
WIDE = LlamaConfig(architectures=["LlamaForCausalLM"], vocab_size=512, hidden_size=768, intermediate_size=2048,
                   num_hidden_layers=6, num_attention_heads=12, num_key_value_heads=4, head_dim=64,
                   max_position_embeddings=4096)

WIDE.save_pretrained(pathlib.Path(sys.argv[1], "wide"))
for name, make in MODELS.items():
    torch.manual_seed(0)
    make().save_pretrained(pathlib.Path(sys.argv[1], name))
