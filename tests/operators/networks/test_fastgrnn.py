import math
import pickle

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import Stop
from operators.networks.fastgrnn import CONTEXT_TOKENS, HEADS, Outputs, Snapshot, shapes
from operators.networks.fastgrnn_torch import FastGRNN
from operators.networks.prior import prior
from operators.tiers import SLOTS


def weights(seed=0, tied=True, size=0.3):
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape) * size, dtype=np.float32) for name, shape in shapes(tied).items()
    }


def same(ours: Outputs, theirs: dict[str, torch.Tensor], atol=1e-5):
    for name, value in ours._asdict().items():
        np.testing.assert_allclose(value, theirs[name].detach().numpy(), atol=atol, rtol=0, err_msg=name)


def test_the_heads_are_those_of_the_design():
    assert len(SLOTS) == HEADS["tier"] == 4
    assert len(CONTEXT_TOKENS) == HEADS["context"] == 5


@pytest.mark.parametrize("tied", [True, False])
@given(seed=st.integers(0, 2**32 - 1), turns=st.integers(1, 6), size=st.floats(0.01, 0.2))
@settings(max_examples=60, deadline=None)
def test_numpy_equals_torch_over_sequences(tied, seed, turns, size):
    # Up to 0.2, twice the paper's start: with much larger ones the cell is chaotic and rounding grows turn by turn.
    snapshot = Snapshot(weights(seed, tied, size), "random")
    module = FastGRNN(snapshot)
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (turns, 128)).astype(np.float32)
    h = rng.uniform(-1, 1, 64).astype(np.float32)
    whole = module.sequence(torch.from_numpy(x)[:, None], torch.from_numpy(h)[None])
    for t in range(turns):
        out = snapshot.forward(x[t], h)
        same(out, {name: value[t, 0] for name, value in whole.items()})
        h = out.hidden


@pytest.mark.parametrize("tied", [True, False])
@given(x=st.lists(st.floats(-1, 1, width=32), min_size=128, max_size=128), turns=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_prior_is_equal_in_torch(tied, x, turns):
    snapshot, module = prior(tied), FastGRNN(prior(tied))
    x, h = np.array(x, np.float32), np.zeros(64, np.float32)
    for _ in range(turns):
        out = snapshot.forward(x, h)
        same(out, module(torch.from_numpy(x), torch.from_numpy(h)))
        h = out.hidden


def test_the_formula_of_the_paper_with_numbers_worked_by_hand():
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes(True).items()}
    params["w"][0, 0, 0] = 1.0
    params["u1"][0, 0, 0] = params["u2"][0, 1, 0] = 1.0  # U[0, 1] = 1
    params["b_z"] += 0.5
    params["b_h"] -= 0.5
    params["zeta"] += 1.0
    params["nu"] -= 4.0
    params["temperature_w"][0, 0] = 1.0
    x, h = np.zeros(128, np.float32), np.zeros(64, np.float32)
    x[0], h[0], h[1] = 0.25, -0.5, 0.75
    sigma = lambda a: 1 / (1 + math.exp(-a))  # noqa: E731
    z, c = sigma(1.0 + 0.5), math.tanh(1.0 - 0.5)
    expected = (sigma(1) * (1 - z) + sigma(-4)) * c + z * -0.5
    out = Snapshot(params, "by hand").forward(x, h)
    assert float(out.hidden[0]) == pytest.approx(expected, abs=1e-6)
    assert float(out.temperature) == pytest.approx(2 * sigma(expected), abs=1e-6)
    assert float(out.top_p) == pytest.approx(0.5)


def test_untied_has_its_own_gate():
    params = weights(1, tied=False)
    x, h = np.ones(128, np.float32), np.zeros(64, np.float32)
    before = Snapshot(params, "a").forward(x, h).hidden
    params["w"][0] += 0.5
    assert np.abs(Snapshot(params, "b").forward(x, h).hidden - before).max() > 0.01


def test_batches_and_single_steps_agree():
    snapshot, rng = Snapshot(weights(), "a"), np.random.default_rng(3)
    x, h = rng.uniform(-1, 1, (9, 128)).astype(np.float32), rng.uniform(-1, 1, (9, 64)).astype(np.float32)
    batch = snapshot.forward(x, h)
    for i in range(9):
        for one, many in zip(snapshot.forward(x[i], h[i]), batch, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, many[i], atol=1e-5)


def test_extreme_weights_do_not_overflow():
    out = Snapshot(weights(size=1e4), "wild").forward(np.ones(128, np.float32), np.ones(64, np.float32))
    assert all(np.isfinite(part).all() for part in out)


def test_a_snapshot_never_changes():
    params = weights()
    snapshot = Snapshot(params, "a")
    x, h = np.ones(128, np.float32), np.ones(64, np.float32)
    before = snapshot.forward(x, h)
    params["w"] += 1.0
    np.testing.assert_array_equal(snapshot.forward(x, h).hidden, before.hidden)
    with pytest.raises(ValueError, match="read-only"):
        snapshot.params["w"][0, 0, 0] = 1.0
    with pytest.raises(AttributeError):
        snapshot.checkpoint = "b"
    np.testing.assert_array_equal(x, 1.0)
    np.testing.assert_array_equal(h, 1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_gives_the_same_weights(tmp_path, tied):
    snapshot = Snapshot(weights(5, tied), "router-7")
    snapshot.save(tmp_path / "router.safetensors")
    again = Snapshot.load(tmp_path / "router.safetensors")
    assert again.checkpoint == "router-7"
    assert again.tied is tied
    for name, value in snapshot.params.items():
        np.testing.assert_array_equal(again.params[name], value)
    assert [file.name for file in tmp_path.iterdir()] == ["router.safetensors"]
    assert pickle.loads(pickle.dumps(snapshot)).to_bytes() == snapshot.to_bytes()


def test_equal_weights_give_equal_bytes():
    assert len({Snapshot(weights(), "a").to_bytes() for _ in range(20)}) == 1
    assert Snapshot(weights(), "a").to_bytes() != Snapshot(weights(), "b").to_bytes()


def changed(**values):
    return weights() | values


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        (changed(b_z=np.full(64, np.nan, np.float32)), "b_z has NaN or infinite"),
        (changed(w=np.full((1, 64, 128), np.inf, np.float32)), "w has NaN or infinite"),
        (changed(b_h=np.zeros(63, np.float32)), r"b_h is float32\[63\], expected float32\[64\]"),
        (changed(w=np.zeros((2, 64, 128), np.float32)), r"u1 is float32\[1, 64, 8\], expected float32\[2, 64, 8\]"),
        (changed(nu=np.float64(0.0)), r"nu is float64\[\]"),
        (changed(more=np.zeros(1, np.float32)), r"lacks or adds parameters \['more'\]"),
        ({name: value for name, value in weights().items() if name != "tier_w"}, r"\['tier_w'\]"),
    ],
)
def test_unfit_weights_are_refused_with_a_remedy(params, complaint):
    with pytest.raises(Stop, match=complaint) as caught:
        Snapshot(params, "router-8")
    assert "router-8" in caught.value.got
    assert "keep the active checkpoint" in caught.value.remedy


def test_unfit_files_are_refused(tmp_path):
    good = Snapshot(weights(), "a").to_bytes()
    with pytest.raises(Stop, match="No such file"):
        Snapshot.load(tmp_path / "none")
    cases = {
        "empty": b"", "cut": good[: len(good) // 2], "noise": b"\xff" * 200,
        "foreign": safetensors.numpy.save(weights()), "layout": good.replace(b"layout", b"loyaut"),
        "nan": good[:-4] + np.float32("nan").tobytes(),
    }  # fmt: skip
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(Stop):
            Snapshot.load(path)
    about = {"router": '{"checkpoint": "a", "layout": "0000000000000000", "learned": false}'}
    with pytest.raises(Stop, match="feature layout 0000000000000000"):
        Snapshot.from_bytes(safetensors.numpy.save(weights(), about))


def test_torch_gives_back_the_snapshot_it_came_from():
    for tied in (True, False):
        snapshot = Snapshot(weights(2, tied), "a")
        assert FastGRNN(snapshot).snapshot("a").to_bytes() == snapshot.to_bytes()
        assert FastGRNN(snapshot).state_dict().keys() == snapshot.params.keys()


def test_training_that_ends_in_nan_makes_no_snapshot():
    module = FastGRNN(prior())
    with torch.no_grad():
        module.w[0, 3, 3] = float("nan")
    with pytest.raises(Stop, match="w has NaN"):
        module.snapshot("bad")


def test_a_missing_turn_passes_the_state_on_and_gradients_reach_the_first_turn():
    module = FastGRNN(Snapshot(weights(4), "a"))
    x = torch.rand(3, 2, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    present = torch.tensor([[True, True], [True, False], [True, True]])
    h0 = torch.zeros(2, 64)
    out = module.sequence(x, h0, present)
    torch.testing.assert_close(out["hidden"][1, 1], out["hidden"][0, 1])
    out["tier"][2].sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].abs().sum() > 0
    assert x.grad[1, 1].abs().sum() == 0


def test_thresholding_keeps_a_tenth_and_training_stays_on_it():
    torch.manual_seed(0)
    module = FastGRNN(Snapshot(weights(6, tied=False), "dense"))
    largest = module.w.detach().abs().flatten(1).topk(819, dim=1).values.min(dim=1).values
    module.threshold(0.1)
    assert (module.w != 0).sum(dim=(1, 2)).tolist() == [819, 819]
    assert [float(w[w != 0].abs().min()) for w in module.w.detach()] == largest.tolist()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    support = module.w.detach() != 0
    for _ in range(3):
        optimiser.zero_grad()
        module(torch.rand(8, 128), torch.zeros(8, 64))["tier"].square().sum().backward()
        optimiser.step()
        module.project()
    assert bool(((module.w.detach() != 0) <= support).all())
    resumed = FastGRNN(module.snapshot("sparse"))
    resumed.fix_support()
    assert torch.equal(resumed.support, module.w.detach() != 0)


def test_every_parameter_of_the_prior_can_learn():
    # U = U1 U2ᵀ is zero at the start; U2 must get a gradient once there is a hidden state, and from then on U1 too.
    module = FastGRNN(prior())
    out = module.sequence(torch.rand(2, 4, 128, generator=torch.Generator().manual_seed(1)) - 0.5, torch.zeros(4, 64))
    sum(out[name].square().sum() for name in ("tier", "context", "temperature", "top_p", "confidence")).backward()
    for name, parameter in module.named_parameters():
        grew = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert grew is (name != "u1"), name
