"""EWC: the Fisher information against its formula, the penalty against its gradient, the decay, the state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from operators.errors import Stop
from operators.learning.ewc import Ewc, diagonal_fisher


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logistic():
    torch.manual_seed(0)
    return nn.Linear(3, 1).double()


def loss(call, x, y):
    return functional.binary_cross_entropy_with_logits(call(x)[0], y)


def samples(n=50):
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=random).double(), torch.randint(2, (n,), generator=random).double()


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_fisher_of_a_logistic_regression(chunk):
    """The gradient of one sample is (σ(wx + b) − y) (x, 1), so F is known in closed form."""
    module, (x, y) = logistic(), samples()
    found = diagonal_fisher(module, loss, x, y, chunk=chunk)
    error = (torch.sigmoid(module(x)[:, 0]) - y).detach()[:, None]
    assert torch.allclose(found["weight"][0], (error * x).square().mean(0), rtol=1e-12)
    assert torch.allclose(found["bias"], error.square().mean(0), rtol=1e-12)
    # not the square of the mean gradient, which is far smaller
    assert (found["weight"][0] > 2 * (error * x).mean(0).square()).all()
    assert all(p.grad is None for p in module.parameters())


def test_fisher_meets_its_expectation():
    """At targets drawn from the model, F tends to p(1 − p) x²: the true Fisher information."""
    module = logistic()
    x = samples(1)[0].expand(20_000, 3)
    p = torch.sigmoid(module(x)[:, 0]).detach()
    y = torch.bernoulli(p, generator=torch.Generator().manual_seed(2))
    found = diagonal_fisher(module, loss, x, y)["weight"][0]
    assert torch.allclose(found, (p * (1 - p))[0] * x[0].square(), rtol=0.05)


def test_frozen_parameters_are_left_out():
    module, (x, y) = logistic(), samples()
    module.bias.requires_grad_(False)
    ewc = Ewc(1.0)
    ewc.consolidate(module, diagonal_fisher(module, loss, x, y))
    assert ewc.fisher.keys() == {"weight"}


def test_the_penalty_and_its_gradient():
    module, (x, y) = logistic(), samples()
    ewc = Ewc(3.0)
    assert ewc.penalty(module).item() == 0.0
    fisher = diagonal_fisher(module, loss, x, y)
    ewc.consolidate(module, fisher)
    assert ewc.penalty(module).item() == 0.0
    anchor = copy.deepcopy(module)
    moved = {"weight": torch.tensor([[0.1, -0.2, 0.3]]).double(), "bias": torch.tensor([0.5]).double()}
    with torch.no_grad():
        for name, p in module.named_parameters():
            p += moved[name]
    value = ewc.penalty(module)
    assert value.item() == pytest.approx(1.5 * sum((fisher[n] * moved[n].square()).sum().item() for n in moved))
    value.backward()
    for name, p in module.named_parameters():
        assert torch.allclose(p.grad, 3.0 * fisher[name] * moved[name])
    assert all(torch.equal(ewc.anchor[name], p) for name, p in anchor.named_parameters())


def test_online_decay_and_the_new_anchor():
    module, (x, y) = logistic(), samples()
    ewc = Ewc(1.0, gamma=0.5)
    first = diagonal_fisher(module, loss, x, y)
    ewc.consolidate(module, first)
    with torch.no_grad():
        module.weight += 1.0
    second = diagonal_fisher(module, loss, x, y)
    ewc.consolidate(module, second)
    assert ewc.penalty(module).item() == 0.0
    for name in first:
        assert torch.allclose(ewc.fisher[name], 0.5 * first[name] + second[name])


def test_it_holds_what_mattered_and_frees_what_did_not():
    """Two tasks on separate inputs: after the second, EWC has kept the first's weight; without it, it would be gone."""
    x1, x2 = torch.tensor([[1.0, 0.0]] * 20).double(), torch.tensor([[0.5, 1.0]] * 20).double()

    def squared(call, x, y):
        return (call(x)[0] - y).square()

    kept = {}
    for strength in (0.0, 5.0):
        torch.manual_seed(0)
        module, ewc = nn.Linear(2, 1, bias=False).double(), Ewc(strength)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for x, targets in ((x1, torch.full((20,), 2.0).double()), (x2, torch.full((20,), -2.0).double())):
            for _ in range(400):
                optimizer.zero_grad()
                ((module(x)[:, 0] - targets).square().mean() + ewc.penalty(module)).backward()
                optimizer.step()
            noisy = targets + torch.randn(20, generator=torch.Generator().manual_seed(3)).double()
            ewc.consolidate(module, diagonal_fisher(module, squared, x, noisy))
        kept[strength] = module(x1)[0].item()
        assert module(x2)[0].item() == pytest.approx(-2.0, abs=0.01)
    assert kept[5.0] == pytest.approx(2.0, abs=0.02)
    assert abs(kept[0.0] - 2.0) > 0.2


def test_state_goes_out_and_comes_back():
    module, (x, y) = logistic(), samples()
    ewc = Ewc(2.0, gamma=0.9)
    assert ewc.state() == {}
    ewc.consolidate(module, diagonal_fisher(module, loss, x, y))
    state = ewc.state()
    with torch.no_grad():
        module.weight += 0.25
    again = Ewc(2.0, gamma=0.9)
    again.restore(state, module)
    assert again.penalty(module).item() == ewc.penalty(module).item() > 0
    assert {name: array.tobytes() for name, array in again.state().items()} == {
        name: array.tobytes() for name, array in state.items()
    }
    again.restore({}, module)
    assert again.penalty(module).item() == 0.0


def test_what_it_does_not_know_is_refused_and_changes_nothing():
    module, (x, y) = logistic(), samples()
    ewc = Ewc(2.0)
    ewc.consolidate(module, diagonal_fisher(module, loss, x, y))
    state = ewc.state()
    bad = [
        {**state, "momentum/weight": state["fisher/weight"]},
        {name: array for name, array in state.items() if name != "anchor/bias"},
        {**state, "fisher/weight": -state["fisher/weight"]},
        {**state, "anchor/bias": np.array([np.nan])},
        {**state, "fisher/weight": state["fisher/weight"][:, :2]},
        {**state, "anchor/bias": state["anchor/bias"].astype(np.float32)},
        {name: array for name, array in state.items() if name.endswith("weight")},
    ]
    for some in bad:
        with pytest.raises(Stop):
            ewc.restore(some, module)
    with pytest.raises(Stop, match="NaN"):
        ewc.consolidate(module, {name: torch.full_like(p, torch.nan) for name, p in module.named_parameters()})
    with pytest.raises(Stop, match="don't fit"):
        ewc.consolidate(nn.Linear(4, 1).double(), ewc.fisher)
    with pytest.raises(Stop, match="no samples"):
        diagonal_fisher(module, loss, x[:0], y[:0])
    with pytest.raises(Stop, match="gamma"):
        Ewc(1.0, gamma=1.5)
    assert all(ewc.state()[name].tobytes() == array.tobytes() for name, array in state.items())


def test_it_fits_the_routers_network():
    """Dictionaries of outputs and a second input: the production network, from its prior."""
    from operators.networks.fastgrnn_torch import FastGRNN
    from operators.networks.prior import prior

    module = FastGRNN(prior())
    random = torch.Generator().manual_seed(4)
    x, h = torch.randn(6, 128, generator=random), torch.zeros(6, 64)
    tier, verdict = torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(6, generator=random)

    def seen(call, x, h, tier, verdict):
        logit = call(x, h)["tier"].gather(0, tier[None])[0]
        return functional.binary_cross_entropy_with_logits(logit, verdict)

    found = diagonal_fisher(module, seen, x, h, tier, verdict)
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for i in range(6):
        module.zero_grad()
        seen(module, x[i], h[i], tier[i], verdict[i]).backward()
        for name, p in module.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square() / 6
    assert found.keys() == total.keys()
    for name in total:
        assert torch.allclose(found[name], total[name], atol=1e-7, rtol=1e-4)
    assert found["tier_w"].abs().sum() > 0
    assert found["context_w"].abs().sum() == 0
