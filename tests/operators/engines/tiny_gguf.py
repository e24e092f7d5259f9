"""A tiny LFM2 with random weights, as GGUF: llama.cpp runs it like the real ones, but it says nothing sensible."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from operators.tiers import ModelFile

HEADS_KV = (0, 2, 0, 2)
"""By layer: 0 is a short convolution, as in the real LFM2."""
WIDTH, HEADS, FORWARD, CONV = 64, 4, 128, 3
SPECIAL = ("<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ a")
CONTEXT = 4096


def write(gguf: Any, path: Path, seed: int = 0, *, width: int = WIDTH, heads: int = HEADS) -> ModelFile:
    """Write the model with the module ``gguf`` (the caller skips its test where that isn't installed).

    The same seed gives the same bytes; the ``ModelFile`` carries their checksum.
    """
    out = gguf.GGUFWriter(path, "lfm2")
    out.add_name("tiny random LFM2")
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_block_count(len(HEADS_KV))
    out.add_context_length(CONTEXT)
    out.add_embedding_length(width)
    out.add_feed_forward_length(FORWARD)
    out.add_head_count(heads)
    out.add_head_count_kv(HEADS_KV)
    out.add_rope_freq_base(1_000_000.0)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_shortconv_l_cache(CONV)
    tokens = vocabulary()
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("lfm2")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    out.add_token_merges(MERGES)
    out.add_bos_token_id(1)
    out.add_eos_token_id(3)
    out.add_pad_token_id(0)
    out.add_add_bos_token(True)
    for name, tensor in tensors(seed, width, heads).items():
        out.add_tensor(f"{name}.weight", tensor)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return ModelFile(id="tiny-lfm2", path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def vocabulary() -> list[str]:
    """The control tokens, the 256 bytes as GPT-2 writes them, and what the merges make."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [*SPECIAL, *map(chr, printable), *(chr(256 + i) for i in range(len(others))), *joined()]


def joined() -> list[str]:
    """The tokens the merges make."""
    return [merge.replace(" ", "") for merge in MERGES]


def tensors(seed: int, width: int = WIDTH, heads: int = HEADS) -> dict[str, Any]:
    """The weights, float32, by GGUF's names."""
    rng, made = np.random.default_rng(seed), {}
    for name, shape in shapes(len(vocabulary()), width, heads).items():
        scale = 1.0 / np.sqrt(shape[-1])
        made[name] = (np.ones(shape) if "norm" in name else rng.normal(0.0, scale, shape)).astype(np.float32)
    return made


def shapes(vocabulary: int, width: int = WIDTH, heads: int = HEADS) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors, rows first (numpy's order; GGUF writes them the other way round)."""
    head = width // heads
    found: dict[str, tuple[int, ...]] = {"token_embd": (vocabulary, width), "token_embd_norm": (width,)}
    for i, kv in enumerate(HEADS_KV):
        mixer: dict[str, tuple[int, ...]] = {
            "shortconv.conv": (width, CONV),
            "shortconv.in_proj": (3 * width, width),
            "shortconv.out_proj": (width, width),
        }
        if kv:
            mixer = {
                "attn_q": (width, width),
                "attn_k": (kv * head, width),
                "attn_v": (kv * head, width),
                "attn_output": (width, width),
                "attn_q_norm": (head,),
                "attn_k_norm": (head,),
            }
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "ffn_norm": (width,),
            "ffn_gate": (FORWARD, width),
            "ffn_up": (FORWARD, width),
            "ffn_down": (width, FORWARD),
        }
        found |= {f"blk.{i}.{name}": shape for name, shape in (block | mixer).items()}
    return found
