"""Tiny models of the real architectures, with random weights in float32, and rows for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from shared.text.tokenized import TokenizedRow

VOCABULARY = 320
PAD, BOS, EOS = 1, 0, 2
WINDOW = 4
# Two runs of several rows, rows longer than WINDOW and shorter, one that is a single token.
ROW_LENGTHS = (11, 7, 7, 7, 3, 2, 2, 1)

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
NARROW_HEADS = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

PACKS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 32},
    "bert": {},
    "biogpt": {},
    "camembert": {},
    "cohere2": {"num_key_value_heads": 2, "sliding_window": WINDOW},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "eurobert": {},
    "gemma2": {**NARROW_HEADS, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**NARROW_HEADS, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 64},
    "gpt_neox": {},
    "gpt_oss": {**NARROW_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "granite": {"num_key_value_heads": 2},
    "llama": {"num_key_value_heads": 2},
    "llama4_text": {
        **NARROW_HEADS,
        "attention_chunk_size": WINDOW,
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "mistral": {"num_key_value_heads": 2, "sliding_window": WINDOW},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "modernbert": {"local_attention": 2 * WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "nomic_bert": {},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": NARROW_HEADS,
    "qwen3_moe": {**NARROW_HEADS, **EXPERTS},
    "roberta": {},
    "smollm3": {"num_key_value_heads": 2},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": WINDOW},
    "xlm-roberta": {},
}
# Attention goes through the interface, but something else looks across rows or counts on whole ones.
DOES_NOT_PACK: dict[str, dict[str, Any]] = {
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},  # positions
    "jamba": {  # a state-space layer
        "num_key_value_heads": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 2,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
    },
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {  # linear attention
        **NARROW_HEADS,
        **EXPERTS,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},  # biases by distance
}
# Attention of their own.
LEFT_ALONE: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "convbert": {},
    "deberta-v2": {},
    "falcon": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "mamba": {},
    "mpnet": {},
}
AUTO_CLASSES = {
    **dict.fromkeys(("bert", "albert", "camembert", "distilbert", "electra", "ernie", "eurobert"), "MaskedLM"),
    **dict.fromkeys(("modernbert", "nomic_bert", "roberta", "xlm-roberta"), "MaskedLM"),
    **dict.fromkeys(("convbert", "deberta-v2", "mpnet"), "MaskedLM"),
}


def make(kind: str, task: str | None = None, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny model of this kind, in evaluation mode: a language model unless `task` says something else."""
    known = PACKS | DOES_NOT_PACK | LEFT_ALONE
    configuration = AutoConfig.for_model(kind, **{**SIZES, **known[kind], **config})
    torch.manual_seed(seed)
    if kind == "t5":
        return transformers.T5EncoderModel(configuration).eval()
    auto_class = getattr(transformers, f"AutoModelFor{task or AUTO_CLASSES.get(kind, 'CausalLM')}")
    return auto_class.from_config(configuration).eval()


def make_rows(lengths: Sequence[int] = ROW_LENGTHS, pairs: bool = False, seed: int = 0) -> list[TokenizedRow]:
    random, nothing = np.random.default_rng(seed), np.zeros(0, np.int32)
    return [
        TokenizedRow(
            random.integers(EOS + 1, VOCABULARY, length).astype(np.int32),
            (np.arange(length) > length // 2).astype(np.int32) if pairs else None,
            nothing,
            nothing,
        )
        for length in lengths
    ]
