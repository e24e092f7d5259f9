"""The absorbed network against the direct form, torch's own attention, and what a checkpoint may look like."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from operators.errors import Stop
from operators.networks import attention
from operators.records import RELATIONS

D, N = 384, 100


def case(n=N, d=D, seed=3, dtype=np.float64):
    """Query, nodes, relation, weight, hop of a made-up neighbourhood: n/5 hits, the rest one or two hops away."""
    rng = np.random.default_rng(seed)
    nodes = rng.standard_normal((n, d))
    query = nodes[0] + 0.7 * nodes[n // 2] + 0.1 * rng.standard_normal(d)
    hop = np.minimum(np.arange(n) * 5 // n, 2).astype(np.int32)
    relation = np.where(hop == 0, attention.HIT, rng.integers(0, len(RELATIONS), n)).astype(np.int8)
    unit = nodes / np.linalg.norm(nodes, axis=1, keepdims=True)
    return (query / np.linalg.norm(query)).astype(dtype), unit.astype(dtype), relation, rng.random(n).astype(dtype), hop


def noisy(seed=5, d=D, heads=8, layers=3, dtype=np.float64):
    """Weights in which no part is zero, so that forgetting any of them shows."""
    rng = np.random.default_rng(seed)
    weights = attention.init(d, heads=heads, layers=layers, seed=seed).astype(np.float64)
    arrays = {k: v + 0.1 * rng.standard_normal(v.shape) / d**0.5 for k, v in weights.arrays().items()}
    for name in ("relation", "weight", "decay"):
        arrays[name] = rng.standard_normal(arrays[name].shape)
    return attention.AttentionWeights(**arrays).astype(dtype)


def direct(weights, query, nodes, relation, weight, hop):
    """The formulas as they are written: every node's keys and values are projected."""
    heads, size = weights.heads, weights.dim // weights.heads
    state, alphas = query, []
    for layer in range(weights.layers):
        asked = (weights.query[layer] @ state).reshape(heads, size)
        keys = (nodes @ weights.key[layer].T).reshape(-1, heads, size)
        scores = np.empty((heads, len(nodes)), query.dtype)
        for h in range(heads):
            slope = np.log1p(np.exp(weights.decay[layer, h]))
            bias = weights.relation[layer, h][relation] + weights.weight[layer, h] * weight - slope * hop
            scores[h] = keys[:, h] @ asked[h] / np.sqrt(size) + bias
        exp = np.exp(scores - scores.max(1, keepdims=True))
        alphas.append(exp / exp.sum(1, keepdims=True))
        if layer < weights.layers - 1:
            values = (nodes @ weights.value[layer].T).reshape(-1, heads, size)
            read = np.concatenate([alphas[-1][h] @ values[:, h] for h in range(heads)])
            x = state + weights.output[layer] @ read
            state = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * weights.gain[layer] + weights.shift[layer]
    return np.stack(alphas)


@pytest.mark.parametrize(("dtype", "close"), [(np.float64, 1e-6), (np.float32, 1e-5)])
@pytest.mark.parametrize("n", [1, 7, 100])
def test_absorbed_equals_direct(dtype, close, n):
    weights, inputs = noisy(dtype=dtype), case(n=n, dtype=dtype)
    got = attention.attend(weights, *inputs)
    assert got.shape == (3, 8, n)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, direct(weights, *inputs), atol=close, rtol=0)
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)


def test_one_layer_equals_torch_attention():
    import torch
    from torch.nn import functional

    weights = noisy(layers=1)
    query, nodes, relation, weight, hop = case()
    heads, size = 8, D // 8
    bias = torch.from_numpy(attention.edge_bias(weights, relation, weight, hop)[0])[:, None]  # [H, 1, n]
    q = torch.from_numpy(weights.query[0] @ query).reshape(heads, 1, size)
    k = torch.from_numpy(nodes @ weights.key[0].T).reshape(-1, heads, size).transpose(0, 1)
    # With one-hot values the output of torch's attention is the attention itself.
    ones = torch.eye(len(nodes), dtype=torch.float64).expand(heads, -1, -1)
    expected = functional.scaled_dot_product_attention(q, k, ones, attn_mask=bias)[:, 0].numpy()
    np.testing.assert_allclose(attention.attend(weights, query, nodes, relation, weight, hop)[0], expected, atol=1e-12)


def test_layer_norm_equals_torch():
    import torch

    x, gain, shift = np.random.default_rng(0).standard_normal((3, D))
    expected = torch.nn.functional.layer_norm(
        *map(torch.from_numpy, (x,)), (D,), *map(torch.from_numpy, (gain, shift)), 1e-6
    )
    np.testing.assert_allclose(attention.layer_norm(x, gain, shift), expected.numpy(), atol=1e-12)


def test_every_part_of_an_edge_moves_the_attention():
    weights = noisy()
    query, nodes, relation, weight, hop = case()
    before = attention.attend(weights, query, nodes, relation, weight, hop)
    for changed in (
        (np.where(np.arange(N) == 50, (relation + 1) % 5, relation).astype(np.int8), weight, hop),
        (relation, np.where(np.arange(N) == 50, weight + 1, weight), hop),
        (relation, weight, np.where(np.arange(N) == 50, hop + 1, hop)),
    ):
        after = attention.attend(weights, query, nodes, *changed)
        assert np.abs(after - before)[:, :, 50].max() > 1e-4


def test_distance_only_ever_lowers_attention():
    weights = noisy()
    query, nodes, relation, weight, hop = case()
    near = attention.attend(weights, query, nodes, relation, weight, hop)[0, :, 50]
    far = attention.attend(weights, query, nodes, relation, weight, hop + 3 * (np.arange(N) == 50))[0, :, 50]
    assert (far < near).all()


def test_nodes_may_come_in_any_order():
    weights, (query, nodes, relation, weight, hop) = noisy(), case()
    order = np.random.default_rng(1).permutation(N)
    straight = attention.attend(weights, query, nodes, relation, weight, hop)
    turned = attention.attend(weights, query, nodes[order], relation[order], weight[order], hop[order])
    np.testing.assert_allclose(turned, straight[:, :, order], atol=1e-12)


def test_fresh_weights_begin_near_similarity():
    query, nodes, *_ = case(dtype=np.float32)
    level = np.full(N, attention.HIT, np.int8), np.ones(N, np.float32), np.zeros(N, np.int32)
    mean = attention.attend(attention.init(D), query, nodes, *level).mean((0, 1))
    assert set(np.argsort(-mean)[:2]) == {0, N // 2}
    assert np.corrcoef(np.log(mean), nodes @ query)[0, 1] > 0.8


def test_init_is_seeded_and_read_only():
    one, same, other = attention.init(32, seed=1), attention.init(32, seed=1), attention.init(32, seed=2)
    assert all(np.array_equal(a, same.arrays()[k]) for k, a in one.arrays().items())
    assert not np.array_equal(one.key, other.key)
    assert not one.trained
    with pytest.raises(ValueError, match="read-only"):
        one.key[0, 0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.key = other.key
    with pytest.raises(Stop, match="multiple of heads"):
        attention.init(30, heads=8)


@pytest.mark.parametrize("trained", [False, True])
def test_checkpoint_comes_back_as_it_went(tmp_path, trained):
    weights = dataclasses.replace(noisy(d=32, dtype=np.float32), trained=trained)
    attention.save(weights, tmp_path / "a.safetensors")
    back = attention.load(tmp_path / "a.safetensors")
    assert back.trained is trained
    assert (back.layers, back.heads, back.dim) == (3, 8, 32)
    for name, array in weights.arrays().items():
        assert np.array_equal(array, back.arrays()[name])
        assert not back.arrays()[name].flags.writeable


def _saved(path, change, about=None):
    from safetensors.numpy import save_file

    arrays = {k: np.array(v) for k, v in attention.init(32).arrays().items()}
    change(arrays)
    save_file(arrays, path, {"format": attention.FORMAT, "trained": "true"} if about is None else about)
    return path


def _nan(arrays):
    arrays["output"][0, 1, 2] = np.nan


def _shape(arrays):
    arrays["value"] = arrays["value"][:, :, :16].copy()


def _gone(arrays):
    del arrays["decay"]


def _bare(arrays):
    del arrays["query"]


def _half(arrays):
    arrays["key"] = arrays["key"].astype(np.float16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_nan, "not finite in output"),
        (_shape, r"value \(2, 32, 16\) instead of \(2, 32, 32\)"),
        (_gone, "decay None instead of"),
        (_bare, "without a usable query"),
        (_half, "float16"),
    ],
)
def test_a_wrong_checkpoint_stops(tmp_path, change, says):
    path = _saved(tmp_path / "a.safetensors", change)
    with pytest.raises(Stop, match=says) as raised:
        attention.load(path)
    assert str(path) in raised.value.who
    assert "similarity" in raised.value.remedy


def test_no_checkpoint_or_not_one_stops(tmp_path):
    with pytest.raises(Stop, match="can't be read"):
        attention.load(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(Stop, match="can't be read"):
        attention.load(tmp_path / "junk.safetensors")
    with pytest.raises(Stop, match="format None"):
        attention.load(_saved(tmp_path / "b.safetensors", lambda arrays: None, {}))
