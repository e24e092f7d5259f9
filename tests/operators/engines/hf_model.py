"""A GGUF as the directory that vLLM reads (safetensors and its JSON): the same weights for both, so they must agree."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from operators.tiers import ModelFile

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What llama.cpp splits at before LFM2's merges."""
CONTROL = 3
COMMON = {"token_embd": "model.embed_tokens", "attn_q": "self_attn.q_proj"}
COMMON |= {"attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
NAMES = {
    "llama": COMMON
    | {"output_norm": "model.norm", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    | {"attn_output": "self_attn.o_proj"}
    | {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
    "lfm2": COMMON
    | {"token_embd_norm": "model.embedding_norm", "attn_norm": "operator_norm", "ffn_norm": "ffn_norm"}
    | {"attn_output": "self_attn.out_proj", "attn_q_norm": "self_attn.q_layernorm"}
    | {"attn_k_norm": "self_attn.k_layernorm", "shortconv.conv": "conv.conv"}
    | {"shortconv.in_proj": "conv.in_proj", "shortconv.out_proj": "conv.out_proj"}
    | {"ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2"},
}


def convert(gguf: Any, source: Path, home: Path, name: str) -> ModelFile:
    """Write the model into the new directory ``home``; the ``ModelFile`` is its ``SHA256SUMS``."""
    import safetensors.numpy

    home.mkdir(parents=True)
    reader = gguf.GGUFReader(source)
    facts = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    arch = facts["general.architecture"]
    facts = {key.removeprefix(f"{arch}."): value for key, value in facts.items()}
    tensors = {}
    for tensor in reader.tensors:
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        tensors[_name(arch, tensor.name)] = _layout(arch, tensor.name, found, facts)
    safetensors.numpy.save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
    (home / "config.json").write_text(json.dumps(_config(arch, facts, len(facts["tokenizer.ggml.tokens"]))))
    write_tokenizer(facts, home)
    files = sorted(home.iterdir())
    sums = home / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files))
    return ModelFile(id=name, path=str(sums), sha256=hashlib.sha256(sums.read_bytes()).hexdigest())


def _name(arch: str, name: str) -> str:
    name = name.removesuffix(".weight")
    if not name.startswith("blk."):
        return NAMES[arch][name] + ".weight"
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{NAMES[arch][rest]}.weight"


def _layout(arch: str, name: str, found: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    if arch == "lfm2" and name.endswith("shortconv.conv.weight"):
        return np.ascontiguousarray(found[:, None, :])
    if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        # GGUF has the two halves of a rotation side by side, Hugging Face one after the other.
        heads = facts["attention.head_count" if name.endswith("attn_q.weight") else "attention.head_count_kv"]
        rows, width = found.shape
        return np.ascontiguousarray(
            found.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
        )
    return np.ascontiguousarray(found)


def _config(arch: str, facts: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    theta = facts["rope.freq_base"]
    kv = facts["attention.head_count_kv"]
    common = {
        "model_type": arch,
        "hidden_size": facts["embedding_length"],
        "intermediate_size": facts["feed_forward_length"],
        "num_hidden_layers": facts["block_count"],
        "num_attention_heads": facts["attention.head_count"],
        "max_position_embeddings": facts["context_length"],
        "vocab_size": vocabulary,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
    }
    if arch == "llama":
        eps = facts["attention.layer_norm_rms_epsilon"]
        rest = {"num_key_value_heads": kv, "rms_norm_eps": eps, "hidden_act": "silu"}
        return common | rest | {"architectures": ["LlamaForCausalLM"]}
    width = facts["embedding_length"]
    return common | {
        "architectures": ["Lfm2ForCausalLM"],
        "num_key_value_heads": max(kv),
        "layer_types": ["full_attention" if heads else "conv" for heads in kv],
        "norm_eps": facts["attention.layer_norm_rms_epsilon"],
        "conv_L_cache": facts["shortconv.l_cache"],
        "conv_bias": False,
        **{"conv_dim": width, "conv_dim_out": width, "block_dim": width},
        **{"block_multiple_of": 1, "block_auto_adjust_ff_dim": False, "block_ffn_dim_multiplier": 1.0},
    }


def write_tokenizer(facts: dict[str, Any], home: Path) -> None:
    """``tokenizer.json`` of a byte-level BPE, from what a GGUF says of it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    if facts["tokenizer.ggml.pre"] == "smollm":
        first: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(WORDS), "isolated")
    regex = facts["tokenizer.ggml.pre"] == "smollm"
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, rest])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    bos = facts["tokenizer.ggml.bos_token_id"]
    if facts.get("tokenizer.ggml.add_bos_token", False):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    tokenizer.save(str(home / "tokenizer.json"))
    words = {"bos_token": tokens[bos], "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]]}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (home / "tokenizer_config.json").write_text(json.dumps(words | kind))
