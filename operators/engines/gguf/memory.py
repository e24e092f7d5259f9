"""Bytes a GGUF will take in llama.cpp, estimated from its header before anything is loaded."""

from __future__ import annotations

from operators.engines.gguf.header import Header

PAD = 256
"""llama.cpp rounds a request's context up to this many tokens."""


def estimate(
    header: Header,
    context_tokens: int,
    parallel: int,
    *,
    kv_bytes: int = 2,
    batch_tokens: int = 256,
    flash: bool = False,
) -> int:
    """Bytes of weights, KV memory and compute buffer, for ``parallel`` requests of ``context_tokens`` each.

    With T = ``context_tokens`` rounded up to 256, B = ``batch_tokens`` (the engine's ubatch) and float32 activations:

    - weights: the tensors' bytes, mapped once;
    - KV: Σ over layers of heads_kv · (key length + value length) · ``kv_bytes`` · T · parallel;
    - state of layers without attention (LFM2's short convolutions): embedding · (l_cache - 1) · 4 · parallel;
    - compute: B · 4 · (max(vocabulary, (heads + 1) · T) + 6 · embedding), the larger of the logits and, without
      ``flash`` attention, one layer's attention scores with their mask; the 6 is fitted (it was 2 to 5.7);
    - output: vocabulary · 4 · parallel.

    From llama.cpp's llama_kv_cache, llama_hparams::n_embd_r and sched_reserve, which reserves the largest graph. Not
    in it: a second copy of weights that ggml repacks for the CPU, states the server keeps to go back to, the state of
    Mamba and RWKV layers, wide feed-forward layers or mixtures of experts where they exceed the logits, and the
    vocabulary's tables (6 to 9 MB for SmolLM2). Layers with a sliding window (Gemma) are counted as
    if they kept the whole context.
    """
    tokens = -(-context_tokens // PAD) * PAD
    cached = sum(header.heads_kv) * (header.key_length + header.value_length) * kv_bytes * tokens
    state = header.heads_kv.count(0) * header.embedding * max(header.conv_cache - 1, 0) * 4
    scores = 0 if flash else (max(header.heads) + 1) * tokens
    compute = batch_tokens * 4 * (max(header.vocabulary, scores) + 6 * header.embedding)
    return header.tensor_bytes + parallel * (cached + state + 4 * header.vocabulary) + compute
