"""`refspec train drafter`: one or several variants of a drafter on the same batches, sharing the target's forward pass.

Variants trained together see the same data in the same order with the same seed, and differ in their switches alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refspec.convert import convert_drafter
from refspec.errors import UsageError
from refspec.train.data import Batches
from refspec.train.drafter import Eagle3, TrainedDrafter
from refspec.train.drafter_loss import Lesson, Teacher, chain_losses
from refspec.train.loop import Optimizers, Stepper, run_steps, tune_allocator
from refspec.train.packing import Ahead, InTurn, WholeDocuments
from refspec.train.precision import choose_device, mixed
from refspec.train.start import start_drafters
from refspec.train.target import hf_directory, load_target
from refspec.train.tokenizer import BOS, load_tokenizer

ROWS, LENGTH = 8, 512  # one step: 4096 tokens
WHOLE = (512, 1024)  # lengths of rows of whole conversations, in turn: most fit the first, long prompts need the second


def draft_vocabulary(folders: Sequence[Path], size: int, vocab_size: int) -> np.ndarray:
    """The `size` tokens most frequent in the assistant's turns, folders with equal weight; ascending int64 ids."""
    counts = np.zeros(vocab_size)
    for data in folders:
        tokens, mask = np.load(data / "train.tokens.npy"), np.load(data / "train.mask.npy")
        found = np.bincount(tokens[mask == 1], minlength=vocab_size)
        counts += found if len(folders) == 1 else found / max(found.sum(), 1)
    return np.sort(np.argsort(-counts, kind="stable")[:size]).astype(np.int64)


def drafter_for(
    target_run: Path,
    draft_vocab_size: int,
    capture_layers: tuple[int, ...] | None = None,
    *,
    ffn: int | None = None,
    **switches: Any,
) -> TrainedDrafter:
    """A drafter with the target's widths, heads and RoPE, which is what llama.cpp and the field's trainers expect.

    `ffn` None is the target's, too. UsageError where the target is too shallow for three default boundaries.
    """
    c = load_target(target_run).config
    if capture_layers is None and len(set(c.default_capture_layers)) < 3:
        raise UsageError(
            f"{target_run}: {c.n_layers} layers have no three default boundaries (2, n/2, n-3); name some with"
            " --layer-ids 1,2,3"
        )
    return TrainedDrafter(
        hidden_size=c.hidden_size, target_hidden_size=c.hidden_size, n_heads=c.n_heads, n_kv_heads=c.n_kv_heads,
        capture_layers=capture_layers or c.default_capture_layers, head_dim=c.head_dim, vocab_size=c.vocab_size,
        intermediate_size=ffn or c.intermediate_size, draft_vocab_size=min(draft_vocab_size, c.vocab_size),
        rms_eps=c.rms_eps, rope_theta=c.rope_theta, context_length=c.context_length, **switches,
    )  # fmt: skip


class Separately(Stepper):
    """One `Optimizers` for each variant, so that no variant's gradient norm clips another's."""

    def __init__(self, parts: list[Optimizers]):
        self.parts = parts

    def step(self, scale: float) -> Tensor:
        """Step every variant; returns the largest gradient norm."""
        return torch.stack([part.step(scale) for part in self.parts]).max()


class Training:
    """Variants of a drafter on the same batches, as a step loop needs them: `loss_of`, `validate`, `optimizers`."""

    def __init__(
        self,
        data: Path | Sequence[Path],
        target_run: Path,
        variants: dict[str, TrainedDrafter],
        *,
        depth: int,
        seed: int,
        rows: str = "cut",
        threads: int | None = None,
        muon_lr: float = 0.02,
        adam_lr: float = 0.002,
        lr_scale: float = 1.0,
        compiled: bool = False,
        init: Path | None = None,
        device: str = "auto",
        batch_tokens: int | None = None,
        teacher_temp: float = 1.0,
    ) -> None:
        """Load data and target and draw the drafters. Raises CheckpointError (files), UsageError (variants, device).

        Several `data` folders are read in turn; the first one's held-out part validates. `rows` "cut" takes rows of 512
        tokens of the packed data, "whole" rows of whole conversations, of 512 and 1024 tokens in turn. `teacher_temp`
        is the temperature of the distribution they learn.
        """
        tune_allocator()
        folders = [data] if isinstance(data, Path) else list(data)
        if threads:
            torch.set_num_threads(threads)
        self.depth, self.device = depth, choose_device(device)
        target = load_target(target_run).to(self.device)
        bos = load_tokenizer(folders[0] / "tokenizer.json").token_to_id(BOS)
        sizes = {(v.draft_vocab_size, v.capture_layers) for v in variants.values()}
        if len(sizes) != 1:
            raise UsageError("variants trained together share their draft vocabulary and captured layers")
        if depth < 2 and any(v.attention_reg for v in variants.values()):
            raise UsageError("--attention-reg needs --depth 2 or more: the first step has no draft tokens to look at")
        ((draft_size, capture),) = sizes
        draft_ids = torch.from_numpy(draft_vocabulary(folders, draft_size, target.config.vocab_size)).to(self.device)
        self.drafters: dict[str, Eagle3] = {}
        for name, config in variants.items():
            torch.manual_seed(seed)  # the same draw for every variant: shared matrices start equal
            self.drafters[name] = Eagle3(config, target.embed.weight.cpu(), draft_ids.cpu()).to(self.device)
        self.together = nn.ModuleDict(self.drafters)
        if init is not None:
            start_drafters(self.drafters, init)
        self.optimizers = Separately(
            [
                Optimizers(d, muon_lr=muon_lr * lr_scale, adam_lr=adam_lr * lr_scale, is_matrix=_hidden_matrix)
                for d in self.drafters.values()
            ]
        )
        self.teacher = Teacher(target, capture, draft_ids, bos, depth, teacher_temp)
        batch_tokens = batch_tokens or ROWS * LENGTH
        if batch_tokens % max(WHOLE):
            raise UsageError(f"--batch-tokens {batch_tokens} is no multiple of {max(WHOLE)}, the longest row")
        self.batches: InTurn | Ahead = InTurn(
            [
                WholeDocuments(f, "train", length=n, rows=batch_tokens // n, seed=seed, bos=bos)
                for n in WHOLE
                for f in folders
            ]
            if rows == "whole"
            else [Batches(f, "train", length=LENGTH, rows=batch_tokens // LENGTH, seed=seed) for f in folders]
        )
        self.kinds = len(self.batches.sources)  # batches of different shapes take turns
        if self.device.type == "cuda":
            self.batches = Ahead(self.batches)
        self.held_out = Batches(folders[0], "val", length=LENGTH, rows=ROWS, seed=0)
        if compiled:
            for block in target.layers:
                block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
        loss = self._variant_loss
        self.losses = {n: torch.compile(loss, dynamic=False) if compiled else loss for n in self.drafters}

    def loss_of(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the variants' losses on batch `step`, and each of them."""
        tokens, mask = self.batches[step]
        lesson = self.teacher.lesson(tokens[:, :-1], mask[:, :-1], 0.5)
        each = {name: self.losses[name](d, lesson) for name, d in self.drafters.items()}
        return sum(each.values()), {f"loss_{n}": v.detach() for n, v in each.items()}  # type: ignore[return-value]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss, agreement by depth and tau of forced tokens on held-out data, for each variant."""
        figures: dict[str, float] = {}
        count, depth = min(16, self.held_out.per_epoch), self.depth
        for name, drafter in self.drafters.items():
            loss, hits, scored = 0.0, np.zeros((depth, 2)), np.zeros(depth)
            for i in range(count):
                tokens, mask = self.held_out[i]
                lesson = self.teacher.lesson(tokens[:, :-1], mask[:, :-1], 1.0)
                with mixed(self.device):
                    value, right, rows = chain_losses(drafter, lesson, depth)
                loss, hits, scored = loss + float(value) / count, hits + np.asarray(right), scored + np.asarray(rows)
            figures[f"{name}_loss"] = loss
            for i in range(depth):
                figures[f"{name}_agree_{i}"] = hits[i, 0] / scored[i]
            # Forced tokens are the corpus', not the target's own: a lower bound that training can watch.
            figures[f"{name}_forced_tau"] = 1 + float((hits[:, 1] / scored).sum())
        return figures

    def _variant_loss(self, drafter: Eagle3, lesson: Lesson) -> Tensor:
        with mixed(self.device):
            return chain_losses(drafter, lesson, self.depth)[0]


def train_drafters(
    data: Path | Sequence[Path],
    target_run: Path,
    out: Path,
    variants: dict[str, TrainedDrafter],
    *,
    steps: int,
    depth: int,
    seed: int,
    lr_scale: float = 1.0,
    outtype: str = "f16",
    init: Path | None = None,
    rows: str = "cut",
    batch_tokens: int | None = None,
    teacher_temp: float = 1.0,
    **how: Any,
) -> dict[str, float]:
    """Train every variant for `steps` steps of `batch_tokens` (4096) tokens.

    Exports each to `out/NAME` (the speculators layout) and `out/NAME.gguf`. `init` is a folder of earlier drafters to
    start from (weights only, fresh optimizer; `start.start_drafters`); `how` goes to `Training`. Raises
    CheckpointError, UsageError.
    """
    batch_tokens = batch_tokens or ROWS * LENGTH
    training = Training(
        data,
        target_run,
        variants,
        depth=depth,
        seed=seed,
        lr_scale=lr_scale,
        init=init,
        rows=rows,
        batch_tokens=batch_tokens,
        teacher_temp=teacher_temp,
        **how,
    )
    identity = {"kind": "drafters", "seed": seed, "steps": steps, "depth": depth,
                "variants": {n: v.to_dict() for n, v in variants.items()}}  # fmt: skip
    if lr_scale != 1:
        identity["lr_scale"] = lr_scale
    if teacher_temp != 1:
        identity["teacher_temp"] = teacher_temp
    if init is not None:
        identity["init"] = str(init)
    if batch_tokens != ROWS * LENGTH:
        identity["batch_tokens"] = batch_tokens
    if rows != "cut" or not isinstance(data, Path):
        identity["rows"], identity["data"] = rows, [str(f) for f in ([data] if isinstance(data, Path) else data)]
    figures = run_steps(
        out,
        identity,
        training.together,
        training.optimizers,
        steps=steps,
        loss_of=training.loss_of,
        validate=training.validate,
        tokens_per_step=batch_tokens,
    )
    for name, drafter in training.drafters.items():
        export_drafter(drafter, out / name)
        convert_drafter(out / name, hf_directory(target_run), out / f"{name}.gguf", outtype)
    return figures


def _hidden_matrix(name: str) -> bool:
    return "head" not in name


def export_drafter(drafter: Eagle3, out: Path, *, embedding: bool = True) -> None:
    """Write config.json and model.safetensors in the speculators layout (float32), the target's embedding or not."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    state = drafter.checkpoint_state()
    if not embedding:
        del state["embed_tokens.weight"]
    save_file(state, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(drafter.checkpoint_config(), indent=1))
