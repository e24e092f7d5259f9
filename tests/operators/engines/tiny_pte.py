"""The tiny LFM2 of ``tiny_gguf`` as ExecuTorch programs, by ExecuTorch's own recipe: ``tiny_pte.py FOLDER``.

A script, for the recipe sets the process's logging up and warns a lot. Writes ``tiny.pte`` as the recipe makes it,
``named.pte``, which also keeps the names of its buffers, and ``tokenizer.json``.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
from pathlib import Path
from typing import Any

import tiny_gguf as tiny

WINDOW = 1024
SEED = 7
"""Of the weights; with these it goes on for a thousand tokens, where others end soon."""
NAMES = {
    "attn_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "attn_q_norm": "attention.q_norm_fn",
    "attn_k_norm": "attention.k_norm_fn",
    "shortconv.conv": "conv.conv",
    "shortconv.out_proj": "conv.out_proj",
}
"""GGUF's name of a layer's weight and ExecuTorch's."""
PARAMS = {
    "dim": tiny.WIDTH,
    "hidden_dim": tiny.FORWARD,
    "n_heads": tiny.HEADS,
    "n_kv_heads": max(tiny.HEADS_KV),
    "n_layers": len(tiny.HEADS_KV),
    "norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "use_scaled_rope": False,
    "vocab_size": len(tiny.vocabulary()),
    "use_hf_rope": True,
    "use_qk_norm": True,
    "qk_norm_before_rope": True,
    "layer_types": ["full_attention" if kv else "conv" for kv in tiny.HEADS_KV],
}


def weights() -> dict[str, Any]:
    import torch

    made = {}
    for name, array in tiny.tensors(SEED).items():
        tensor = torch.from_numpy(array)
        if name == "token_embd":
            made["tok_embeddings.weight"] = made["output.weight"] = tensor
        elif name == "token_embd_norm":
            made["norm.weight"] = tensor
        else:
            _, layer, part = name.split(".", 2)
            at = f"layers.{layer}"
            if part == "shortconv.in_proj":
                for third, piece in zip("BCx", tensor.chunk(3), strict=True):
                    made[f"{at}.conv.{third}_proj.weight"] = piece.contiguous()
            else:
                made[f"{at}.{NAMES[part]}.weight"] = tensor[:, None] if part == "shortconv.conv" else tensor
    return made


def tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in tiny.MERGES]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tiny.vocabulary())}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(tiny.SPECIAL))
    made.save(str(path))


def export(folder: Path) -> None:
    import torch
    from executorch.examples.models.llama import export_llama_lib as recipe
    from executorch.extension.llm.export import builder
    from executorch.extension.llm.export.config.llm_config import LlmConfig, ModelType

    torch.set_num_threads(1)
    tokenizer(folder / "tokenizer.json")
    (folder / "params.json").write_text(json.dumps(PARAMS))
    torch.save(weights(), folder / "weights.pth")
    plain, manager = builder.ExecutorchBackendConfig, builder.LLMEdgeManager
    finish = manager.to_executorch

    def both(self: Any, **options: Any) -> Any:
        """The recipe's last step, once with names and once as it is: the steps before take a minute."""
        lowered = copy.deepcopy(self.edge_manager)
        builder.ExecutorchBackendConfig = functools.partial(plain, emit_mutable_buffer_names=True)
        finish(self, **options).save_to_pte(str(folder / "named.pte"))
        builder.ExecutorchBackendConfig, self.edge_manager = plain, lowered
        return finish(self, **options)

    manager.to_executorch = both
    config = LlmConfig()
    config.base.model_class = ModelType.lfm2_350m
    config.base.params, config.base.checkpoint = str(folder / "params.json"), str(folder / "weights.pth")
    config.base.metadata = json.dumps({"get_bos_id": 1, "get_eos_ids": [3]})
    config.model.use_kv_cache = config.model.use_sdpa_with_kv_cache = True
    config.backend.xnnpack.enabled = config.backend.xnnpack.extended_ops = True
    config.export.max_seq_length = config.export.max_context_length = WINDOW
    config.export.output_dir, config.export.output_name = str(folder), str(folder / "tiny.pte")
    recipe.export_llama(config)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
