"""The type that training computes in: bf16 where the device multiplies it faster than float32, float32 elsewhere.

Master weights are always float32. A processor without instructions for bf16 (most laptops) emulates it: a matrix
multiplication then takes 60 times as long as in float32. So the choice is measured, once in a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from time import perf_counter

import torch
from torch import Tensor

from refspec.errors import UsageError

SIZE, TRIES = 256, 3  # of the timed multiplication: some milliseconds even where it is slow


@cache
def half_pays(kind: str) -> bool:
    """Whether a device of this kind ("cpu", "cuda") multiplies bf16 faster than float32."""
    if kind != "cpu":
        return True
    return _seconds(torch.bfloat16) < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    a = torch.ones(SIZE, SIZE).to(dtype)
    found = []
    for _ in range(TRIES):
        began = perf_counter()
        a @ a
        found.append(perf_counter() - began)
    return min(found)


def choose_device(name: str) -> torch.device:
    """`auto` is an accelerator torch sees, else the processor; UsageError for `cuda` where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no such accelerator here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def mixed(device: torch.device) -> torch.autocast:
    """The context that losses are computed in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=half_pays(device.type))


def compute_type(device: torch.device) -> torch.dtype:
    """The type of activations within `mixed`."""
    return torch.bfloat16 if half_pays(device.type) else torch.float32


class Float32Muon(torch.optim.Muon):
    """torch's Muon with its orthogonalization in float32: torch's own is in bf16 whatever the device."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient."""
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, params, grads, momenta)
            for p, grad, held in zip(params, grads, momenta, strict=True):
                held.lerp_(grad, 1 - group["momentum"])
                update = orthogonal(
                    grad.lerp(held, group["momentum"]), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, len(p) / p.shape[1]) ** 0.5)


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iteration: x [n, m] with its singular values moved close to 1 (Muon: Jordan 2024)."""
    a, b, c = coefficients
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def muon(parameters: Sequence[Tensor], **settings: float) -> torch.optim.Muon:
    """Muon in the type that this device is fast in."""
    kinds = {p.device.type for p in parameters}
    return (torch.optim.Muon if all(map(half_pays, kinds)) else Float32Muon)(list(parameters), **settings)  # type: ignore[arg-type]
