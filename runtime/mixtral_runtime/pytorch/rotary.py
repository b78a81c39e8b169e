"""Rotary position embedding in the GPT-NeoX (half split) order, as Hugging Face and TensorRT-LLM's rope_gpt_neox."""

import torch
from torch import Tensor


class Rotary:
    """Su et al. 2021, arXiv:2104.09864. The angles are tabulated once: a row depends on its position alone."""

    def __init__(self, head_size: int, base: float, max_positions: int, device: torch.device) -> None:
        exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
        frequencies = 1.0 / base**exponents  # [head_size / 2]
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
        self.cos = angles.cos().to(device)  # [positions, head_size / 2] float32, and so is sin
        self.sin = angles.sin().to(device)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: [tokens, heads, head_size], positions: [tokens]. In float32, returned in x's dtype."""
        cos = self.cos[positions][:, None]  # [tokens, 1, head_size / 2]
        sin = self.sin[positions][:, None]
        low, high = x.float().chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
