"""The router's network for training: the same parameters as ``fastgrnn.Snapshot`` in a torch module.

The only file of the router that imports torch; serving never imports it. The formulas are written out as in the paper
(Kusupati et al. 2018, arXiv:1901.02358) and not fused, so that the equality test compares two independent forms.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from operators.networks.fastgrnn import HEADS, Snapshot, shapes


class FastGRNN(nn.Module):
    """Trainable router, tied or untied as the ``snapshot`` it starts from; ``state_dict`` has the snapshot's names.

    ``support`` bool, shaped as ``w``: the entries of W that may differ from zero (all until ``threshold``).
    """

    w: nn.Parameter
    u1: nn.Parameter
    u2: nn.Parameter
    b_z: nn.Parameter
    b_h: nn.Parameter
    zeta: nn.Parameter
    nu: nn.Parameter
    support: Tensor

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        for name in shapes(snapshot.tied):
            self.register_parameter(name, nn.Parameter(torch.from_numpy(snapshot.params[name].copy())))
        self.register_buffer("support", torch.ones_like(self.w, dtype=torch.bool), persistent=False)

    def forward(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        """One step: ``x`` float32[..., 128], ``h`` float32[..., 64]. Keys and shapes are ``fastgrnn.Outputs``'."""
        pre = [x @ w.T + (h @ u2) @ u1.T for w, u1, u2 in zip(self.w, self.u1, self.u2, strict=True)]
        z = torch.sigmoid(pre[0] + self.b_z)
        c = torch.tanh(pre[-1] + self.b_h)
        hidden = (torch.sigmoid(self.zeta) * (1.0 - z) + torch.sigmoid(self.nu)) * c + z * h
        # getattr, not get_parameter: torch.func puts plain tensors in the parameters' place
        heads = {head: hidden @ getattr(self, f"{head}_w").T + getattr(self, f"{head}_b") for head in HEADS}
        return {
            "tier": heads["tier"],
            "context": heads["context"],
            "temperature": 2.0 * torch.sigmoid(heads["temperature"])[..., 0],
            "top_p": torch.sigmoid(heads["top_p"])[..., 0],
            "confidence": torch.sigmoid(heads["confidence"])[..., 0],
            "hidden": hidden,
        }

    def sequence(self, x: Tensor, h: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """Whole sessions: ``x`` float32[turns, batch, 128], first state ``h`` float32[batch, 64].

        ``present`` bool[turns, batch] says which turns exist; a missing one passes the state on. Outputs are stacked as
        [turns, batch, ...] and gradients flow through the state (backpropagation through time).
        """
        steps = []
        for t in range(x.shape[0]):
            step = self(x[t], h)
            if present is not None:
                step["hidden"] = torch.where(present[t, :, None], step["hidden"], h)
            h = step["hidden"]
            steps.append(step)
        return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}

    @torch.no_grad()
    def threshold(self, share: float = 0.1) -> None:
        """Iterative hard thresholding (as in the paper): keep the largest ``share`` of each W, freeze the rest at 0.

        Called again it chooses anew among all entries. After it, call ``project`` behind every optimiser step.
        """
        keep = math.floor(share * self.w[0].numel())
        flat = self.w.abs().flatten(1)
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen.scatter_(1, flat.topk(keep, dim=1).indices, True)
        self.support.copy_(chosen.view_as(self.w) & (self.w != 0))
        self.project()

    @torch.no_grad()
    def fix_support(self) -> None:
        """Freeze the zeros that W has now, as when training goes on from a sparse checkpoint."""
        self.support.copy_(self.w != 0)

    @torch.no_grad()
    def project(self) -> None:
        """Set W to zero outside its support."""
        self.w.mul_(self.support)

    def snapshot(self, checkpoint: str) -> Snapshot:
        """The weights now, as an immutable snapshot. Raises ``Stop`` if training left NaN or infinite values."""
        params = {name: value.detach().cpu().numpy().astype(np.float32) for name, value in self.named_parameters()}
        return Snapshot(params, checkpoint)
