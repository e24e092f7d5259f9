"""The torch network against the numpy one: the same attention, padded or not, and gradients of what numpy computes."""

from __future__ import annotations

import numpy as np
import torch

from operators.networks import attention
from operators.networks.attention_torch import Attention
from operators.records import RELATIONS

D = 32


def noisy(seed=5, layers=3, dtype=np.float32):
    """Weights in which no part is zero, so that forgetting any of them shows."""
    rng = np.random.default_rng(seed)
    weights = attention.init(D, heads=4, layers=layers, seed=seed).astype(np.float64)
    arrays = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in weights.arrays().items()}
    for name in ("relation", "weight", "decay"):
        arrays[name] = rng.standard_normal(arrays[name].shape)
    arrays["query"] /= 16
    return attention.AttentionWeights(**arrays).astype(dtype)


def case(n, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    nodes = rng.standard_normal((n, D))
    hop = np.minimum(np.arange(n) * 5 // n, 2)
    relation = np.where(hop == 0, attention.HIT, rng.integers(0, len(RELATIONS), n))
    nodes = (nodes / np.linalg.norm(nodes, axis=1, keepdims=True)).astype(dtype)
    query = rng.standard_normal(D)
    return (query / np.linalg.norm(query)).astype(dtype), nodes, relation, rng.random(n).astype(dtype), hop


def padded(cases):
    """The network's inputs; what stands in the padding must not matter, so it is anything but 0."""
    b, n = len(cases), max(len(nodes) for _, nodes, *_ in cases)
    dtype = cases[0][0].dtype
    out = [np.stack([c[0] for c in cases]), np.full((b, n, D), 3, dtype), np.full((b, n), attention.LOOSE)]
    out += [np.full((b, n), 9, dtype), np.full((b, n), 7), np.zeros((b, n), np.bool_)]
    for i, (_, *rest) in enumerate(cases):
        size = len(rest[0])
        for array, value in zip(out[1:], (*rest, True), strict=True):
            array[i, :size] = value
    return [torch.from_numpy(array) for array in out]


def test_torch_equals_numpy_in_a_padded_batch():
    for layers in (1, 3):
        weights, cases = noisy(layers=layers), [case(n, n) for n in (1, 7, 100, 40)]
        with torch.no_grad():
            got = Attention(weights)(*padded(cases)).numpy()
        assert got.shape == (4, layers, 4, 100)
        for row, inputs in zip(got, cases, strict=True):
            n = len(inputs[1])
            np.testing.assert_allclose(row[..., :n], attention.attend(weights, *inputs), atol=1e-5, rtol=0)
            assert not row[..., n:].any()


def test_gradients_are_those_of_the_numpy_network():
    weights, inputs = noisy(dtype=np.float64), case(9, 1, np.float64)

    def loss(changed):
        return -np.log(attention.attend(changed, *inputs).mean((0, 1))[4])

    network = Attention(weights)
    (-network(*padded([inputs])).mean((1, 2))[0, 4].log()).backward()
    rng, step = np.random.default_rng(0), 1e-5
    for name, parameter in network.named_parameters():
        direction = rng.standard_normal(parameter.shape)
        ends = []
        for sign in (1, -1):
            arrays = dict(weights.arrays())
            arrays[name] = arrays[name] + sign * step * direction
            ends.append(loss(attention.AttentionWeights(**arrays)))
        by_torch = float((parameter.grad.numpy() * direction).sum())
        assert abs(by_torch) > 1e-7, name  # a parameter that nothing reaches would pass otherwise
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), by_torch, rtol=1e-5, atol=1e-9, err_msg=name)


def test_weights_go_in_and_come_out():
    weights = noisy()
    network = Attention(weights)
    back = network.weights()
    assert all(np.array_equal(array, back.arrays()[name]) for name, array in weights.arrays().items())
    assert not back.trained
    with torch.no_grad():
        network.key.add_(1)  # what was taken out stays as it was
    assert np.array_equal(back.key, weights.key)


def test_the_start_orders_as_search_did_and_its_matrices_can_learn():
    query, nodes, relation, _, hop = case(50, 2)
    hits = int((hop == 0).sum())
    rng = np.random.default_rng(0)
    weight = rng.random(50).astype(np.float32)
    weight[:hits] = np.sort(rng.random(hits))[::-1]
    weights = attention.by_score(D, heads=4)
    mean = attention.attend(weights, query, nodes, relation, weight, hop).mean((0, 1))
    assert np.argsort(-mean, kind="stable")[:hits].tolist() == list(range(hits))
    network = Attention(weights)
    inputs = padded([(query, nodes, relation, weight, hop)])
    (-network(*inputs).mean((1, 2))[0, hits].log()).backward()
    assert network.query.grad.abs().max() > 0
