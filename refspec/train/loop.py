"""What both trainings share: optimizer, learning-rate schedule, checkpoints that survive a kill, the step loop.

Everything that decides a step (data order, schedule) is a function of the step number and the seed, so a resumed run
continues as if it had not stopped.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refspec.errors import CheckpointError
from refspec.train.precision import muon

SAVE_SECONDS = 20.0  # at least between two checkpoints
CHECKPOINT = "checkpoint.pt"


def tune_allocator() -> None:
    """Keep freed memory in the process (glibc): fresh pages for every temporary cost up to half of a CPU step."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # not glibc: slower, nothing else


class Stepper:
    """What `run_steps` steps: the optimizers in `parts`, saved and restored in order."""

    parts: Sequence[Any]

    def step(self, scale: float) -> Tensor:
        """Update with learning rates times `scale`, clear gradients; the gradient norm, on its device."""
        raise NotImplementedError

    def state_dict(self) -> list:
        """The state of every part, in order."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, state: list) -> None:
        """Restore what `state_dict` gave."""
        for part, value in zip(self.parts, state, strict=True):
            part.load_state_dict(value)


class Optimizers(Stepper):
    """Muon for the hidden matrices, AdamW for embeddings, heads and norms; one schedule for both.

    Muon (orthogonalized momentum) needs roughly a third fewer tokens than AdamW for models this small.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        muon_lr: float,
        adam_lr: float,
        is_matrix: Callable[[str], bool],
        weight_decay: float = 0.01,
    ):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and is_matrix(n)]
        rest = [p for n, p in named if not (p.ndim == 2 and is_matrix(n))]
        self.parts = [
            muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=weight_decay),
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.base = [muon_lr, adam_lr]
        self.parameters = [p for _, p in named]

    def step(self, scale: float) -> Tensor:
        """As `Stepper.step`, with gradients clipped to a norm of 1."""
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, base in zip(self.parts, self.base, strict=True):
            for group in part.param_groups:
                group["lr"] = base * scale
            part.step()
            part.zero_grad(set_to_none=True)
        return norm


def schedule(step: int, steps: int, *, warmup: int = 50, decay_from: float = 0.3) -> float:
    """Linear warm-up, constant, then linear to zero from `decay_from` of the run on."""
    if step < warmup:
        return (step + 1) / warmup
    progress = step / steps
    return 1.0 if progress < decay_from else (1.0 - progress) / (1.0 - decay_from)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint of `run_steps`, tensors and plain values only; CheckpointError for anything else."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    # torch raises what the damage happens to trigger: EOFError, RuntimeError, UnpicklingError
    except Exception as error:
        why = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"{file}: not a checkpoint this version can read ({why}); delete it or name another folder"
        ) from None
    if not isinstance(state, dict) or not {"identity", "model", "step"} <= state.keys():
        raise CheckpointError(f"{file}: not a checkpoint of refspec train; delete it or name another folder")
    return state


def save_atomic(value: dict, path: Path) -> None:
    """A kill during the write leaves the previous checkpoint whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    os.replace(temporary, path)


def run_steps(
    out: Path,
    identity: dict,
    model: nn.Module,
    optimizers: Stepper,
    *,
    steps: int,
    loss_of: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    validate: Callable[[], dict[str, float]],
    tokens_per_step: int,
    checkpoint_every: int = 200,
    validate_every: int = 400,
) -> dict:
    """Train from the last checkpoint in `out` (or from step 0) to `steps`; returns the last validation figures.

    `identity` is what must not change between a run and its resumption; a difference raises CheckpointError.
    `loss_of` also returns parts of the loss for the log. Losses are read only when they are logged, so that nothing
    waits for an accelerator in between. The log `out/log.jsonl` holds one object per 20 steps and per validation.
    """
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    file, start, figures = out / CHECKPOINT, 0, {}
    if file.exists():
        state = read_checkpoint(file)
        before = state["identity"]
        for key in [*identity, *before]:  # an option left out now differs as much as one added
            if before.get(key) != identity.get(key):
                raise CheckpointError(
                    f"{file}: this run was started with {key}={before.get(key)!r}, now {identity.get(key)!r}; "
                    "give the same options, or another --out"
                )
        model.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        start, figures = state["step"], state["figures"]

    def save(step: int) -> None:
        save_atomic(
            {"identity": identity, "model": model.state_dict(), "optimizers": optimizers.state_dict(),
             "step": step, "figures": figures}, file,
        )  # fmt: skip

    with open(out / "log.jsonl", "a", buffering=1) as log, tqdm(total=steps, initial=start, unit="step") as bar:
        clock, saved = time.perf_counter(), time.perf_counter() - SAVE_SECONDS
        for step in range(start, steps):
            loss, parts = loss_of(step)
            loss.backward()
            norm = optimizers.step(schedule(step, steps))
            bar.update()
            if (step + 1) % 20 == 0:
                float(loss.detach())  # an accelerator's work is done when its result is there
                rate = 20 * tokens_per_step / (time.perf_counter() - clock)
                clock = time.perf_counter()
                record = {
                    "step": step + 1,
                    "loss": round(float(loss.detach()), 4),
                    "grad_norm": round(float(norm), 3),
                    "tokens_per_second": round(rate),
                    **{k: round(float(v), 4) for k, v in parts.items()},
                }
                bar.set_postfix(loss=record["loss"], tok_s=record["tokens_per_second"])
                log.write(json.dumps(record) + "\n")
            if (step + 1) % validate_every == 0 or step + 1 == steps:
                model.eval()
                # NumPy's floats do not come back from a checkpoint
                figures = {k: round(float(v), 4) for k, v in validate().items()}
                model.train()
                log.write(json.dumps({"step": step + 1, "validation": figures}) + "\n")
                bar.write(f"step {step + 1}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
            due = (step + 1) % checkpoint_every == 0 and time.perf_counter() - saved > SAVE_SECONDS
            if due or step + 1 == steps:
                save(step + 1)
                saved = time.perf_counter()
    return figures
