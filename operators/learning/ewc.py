"""Elastic weight consolidation: what mattered for what was learned may move less (Kirkpatrick et al. 2017).

    penalty(θ) = λ/2 Σᵢ Fᵢ (θᵢ − θ*ᵢ)²                              Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3
    F ← γ F + F_new,  θ* ← θ   at each consolidation                Schwarz et al. 2018, arXiv:1805.06370, online EWC

F is the diagonal of the Fisher information: the mean over samples of the *squared gradient of each sample's loss*. The
square of a batch's mean gradient, which is cheaper, is something else: it vanishes where the samples' gradients cancel,
as they do at an optimum. F is the true Fisher if the loss is a negative log likelihood at targets drawn from the model
itself, and the empirical one at the targets observed (Kunstner et al. 2019, arXiv:1905.12558); the caller chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from operators.errors import Stop

if TYPE_CHECKING:
    from torch import Tensor, nn

Array: TypeAlias = npt.NDArray[Any]
Loss: TypeAlias = "Callable[..., Tensor]"
"""``loss(call, *sample) → scalar``: the loss of ONE sample, where ``call(*inputs)`` is the module's forward."""

WHO = "EWC"


def diagonal_fisher(module: nn.Module, loss: Loss, *samples: Tensor, chunk: int = 256) -> dict[str, Tensor]:
    """Parameter name → mean over samples of the squared gradient of ``loss``, shaped as the parameter.

    ``samples`` are the columns, each [n, …], n at least 1; ``loss`` gets one row of each. ``chunk`` samples are worked
    on at a time, for memory holds a gradient for each. Parameters that don't require a gradient are left out.
    """
    import torch
    from torch.func import functional_call, grad, vmap

    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    n = len(samples[0])
    if n == 0:
        raise Stop(WHO, "no samples to estimate the Fisher information from", "consolidate once something was learned")

    def one(values: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return loss(lambda *inputs: functional_call(module, values, inputs), *sample)

    gradients = vmap(grad(one), in_dims=(None, *[0] * len(samples)), randomness="different")
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for start in range(0, n, chunk):
        for name, g in gradients(params, *(column[start : start + chunk] for column in samples)).items():
            total[name] += g.square().sum(0)
    return {name: value / n for name, value in total.items()}


class Ewc:
    """Online EWC for one module. With ``gamma`` 1 nothing ever learned is released; with less, the old fades.

    Args:
        strength: λ.
        gamma: γ in [0, 1], what is left of the old F at each consolidation.
    """

    def __init__(self, strength: float, gamma: float = 0.95) -> None:
        if not strength >= 0 or not 0 <= gamma <= 1:
            raise Stop(WHO, f"strength {strength}, gamma {gamma}", "give a strength of at least 0, gamma in [0, 1]")
        self.strength = strength
        self.gamma = gamma
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def consolidate(self, module: nn.Module, fisher: Mapping[str, Tensor]) -> None:
        """F ← γF + ``fisher``, θ* ← the parameters now. Raises ``Stop``, changing nothing, if F would not be finite."""
        params = dict(module.named_parameters())
        self._same(params, fisher)
        made = {name: f.detach().clone() for name, f in fisher.items()}
        if self.fisher:
            self._same(params, self.fisher)
            for name, f in made.items():
                f.add_(self.fisher[name], alpha=self.gamma)
        if not all(bool(f.isfinite().all()) for f in made.values()):
            raise Stop(WHO, "a Fisher information with NaN or infinite values", "go back to the last good checkpoint")
        self.fisher = made
        self.anchor = {name: params[name].detach().clone() for name in made}

    def penalty(self, module: nn.Module) -> Tensor:
        """λ/2 Σ F (θ − θ*)², a scalar with gradient; 0 before the first consolidation."""
        import torch

        params = dict(module.named_parameters())
        if not self.fisher:
            return torch.zeros(())
        terms = [(f * (params[name] - self.anchor[name]).square()).sum() for name, f in self.fisher.items()]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def state(self) -> dict[str, Array]:
        """``fisher/NAME`` and ``anchor/NAME`` as arrays, copies; empty before the first consolidation."""
        parts = {"fisher": self.fisher, "anchor": self.anchor}
        return {
            f"{part}/{name}": value.detach().cpu().numpy().copy()
            for part, values in parts.items()
            for name, value in values.items()
        }

    def restore(self, state: Mapping[str, Array], module: nn.Module) -> None:
        """Put back what ``state`` gave, for ``module``. Raises ``Stop`` for anything else, changing nothing."""
        import torch

        params = dict(module.named_parameters())
        parts: dict[str, dict[str, Tensor]] = {"fisher": {}, "anchor": {}}
        for path, array in state.items():
            part, _, name = path.partition("/")
            if part not in parts:
                raise Stop(WHO, f"an unknown part {path} of the state", "restore what this version wrote")
            value = torch.from_numpy(np.array(array))
            if not np.isfinite(array).all() or (part == "fisher" and (array < 0).any()):
                raise Stop(WHO, f"{path} has NaN, infinite or negative values", "go back to the last good checkpoint")
            parts[part][name] = value
        if parts["fisher"].keys() != parts["anchor"].keys():
            odd = sorted(parts["fisher"].keys() ^ parts["anchor"].keys())
            raise Stop(WHO, f"only one of fisher and anchor for {odd}", "restore what this version wrote")
        for values in parts.values():
            self._same(params, values)
        self.fisher, self.anchor = parts["fisher"], parts["anchor"]

    @staticmethod
    def _same(params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        """Refuse values for other parameters than the module's, or of other shapes or dtypes."""
        expected = {name: (tuple(p.shape), p.dtype) for name, p in params.items() if p.requires_grad}
        got = {name: (tuple(value.shape), value.dtype) for name, value in values.items()}
        if values and expected != got:
            odd = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
            raise Stop(WHO, f"values that don't fit the module at {odd}", "use the state of the same network")
