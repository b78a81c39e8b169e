"""The sparse mixture of experts of one layer: the router's choice, and the one object that owns the expert weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixtral_runtime.formats import FusedExperts, Linear

# PyTorch's CPU kernels split work of this many elements over threads, at any element, and compute the ends of a split
# with another `exp` than the middle. Below it, an element's bits depend on its place in its row alone.
CPU_GRAIN = 32768


def route(router_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """[tokens, experts] float32 -> chosen experts [tokens, top_k] int64 and weights [tokens, top_k] float32.

    Softmax over the selected logits, equal to softmax over all and then renormalising. Best first; of equal logits
    the lower expert wins, on every device.
    """
    ordered, experts = router_logits.sort(dim=-1, descending=True, stable=True)
    return experts[:, :top_k], ordered[:, :top_k].softmax(dim=-1)


class Experts:
    """All experts of one layer. The engine reaches their weights through here alone, so that caching can be added.

    fc: [hidden] -> [2 * intermediate], up projection (w3) first, gate (w1) second. proj: w2, back to [hidden].
    fused: the same weights in one call, where the format has a kernel for it; leave it out to multiply by other Linear
    objects than the format's own.
    """

    def __init__(self, fc: list[Linear], proj: list[Linear], fused: FusedExperts | None = None) -> None:
        self.fc = fc
        self.proj = proj
        self._fused = fused

    @property
    def fused(self) -> bool:
        return self._fused is not None

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x: [tokens, hidden]; experts, weights: [tokens, top_k] from `route`."""
        if self._fused is not None:
            return self._fused(x, experts, weights)
        tokens, top_k = experts.shape
        chosen = experts.flatten()  # [tokens * top_k]
        counts = chosen.bincount(minlength=len(self.fc)).tolist()
        slots = x.new_empty(tokens * top_k, x.shape[1])
        for expert, rows in enumerate(torch.split(chosen.argsort(stable=True), counts)):
            if len(rows):
                slots[rows] = self._expert(expert, x[rows // top_k])
        outputs = slots.view(tokens, top_k, -1).float()
        total = outputs[:, 0] * weights[:, 0, None]
        for slot in range(1, top_k):  # in fixed order: a sum's bits depend on it
            total += outputs[:, slot] * weights[:, slot, None]
        return total.to(x.dtype)

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        up, gate = self.fc[expert](x).chunk(2, dim=-1)  # [tokens, intermediate]
        return self.proj[expert](_silu(gate) * up)


def _silu(gate: Tensor) -> Tensor:
    if gate.is_cuda:
        return F.silu(gate)
    rows = max(1, (CPU_GRAIN - 1) // gate.shape[1])
    return torch.cat([F.silu(part) for part in torch.split(gate, rows)])
