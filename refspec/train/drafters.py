"""`refspec train drafter`: one or several variants of a drafter on the same batches, sharing the target's forward pass.

Twins trained together see the same data in the same order with the same seed, and differ in their switches alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert import convert_drafter
from ..errors import CheckpointError, UsageError
from .data import Batches
from .drafter import Eagle3, TrainedDrafter
from .loop import Optimizers, run_steps, tune_allocator
from .model import document_mask
from .target import load_target
from .tokenizer import BOS, load_tokenizer

ROWS, LENGTH = 8, 512  # one step: 4096 tokens
DEPTH_WEIGHT = 0.8  # loss_i counts 0.8^i (EAGLE-3; SafeAILab, SpecForge and TorchSpec agree)


def draft_vocabulary(data: Path, size: int, vocab_size: int) -> np.ndarray:
    """The `size` tokens most frequent in the assistant's text, ascending int64 ids."""
    tokens, mask = np.load(data / "train.tokens.npy"), np.load(data / "train.mask.npy")
    counts = np.bincount(tokens[mask == 1], minlength=vocab_size)
    return np.sort(np.argsort(-counts, kind="stable")[:size]).astype(np.int64)


def drafter_for(
    target_run: Path, draft_vocab_size: int, capture_layers: tuple[int, ...] | None = None, **switches: str
) -> TrainedDrafter:
    """A drafter with the target's widths, heads and RoPE, which is what llama.cpp and the field's trainers expect."""
    c = load_target(target_run).config
    return TrainedDrafter(
        hidden_size=c.hidden_size, target_hidden_size=c.hidden_size, n_heads=c.n_heads, n_kv_heads=c.n_kv_heads,
        capture_layers=capture_layers or c.default_capture_layers, head_dim=c.head_dim, vocab_size=c.vocab_size,
        intermediate_size=c.intermediate_size, draft_vocab_size=min(draft_vocab_size, c.vocab_size),
        rms_eps=c.rms_eps, rope_theta=c.rope_theta, context_length=c.context_length, **switches,
    )  # fmt: skip


class Separately:
    """One Optimizers per variant, so that no variant's gradient norm clips another's."""

    def __init__(self, parts: list[Optimizers]):
        self.parts = parts

    def step(self, scale: float) -> float:
        """Step every variant; returns the largest gradient norm."""
        return max([part.step(scale) for part in self.parts])

    def state_dict(self) -> list:
        """The state of every variant, in order."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, state: list) -> None:
        """Take back what `state_dict` gave."""
        for part, value in zip(self.parts, state, strict=True):
            part.load_state_dict(value)


def choose_rows(valid: Tensor, count: int) -> Tensor:
    """`count` rows of each sequence, those that carry loss first, chosen evenly: bool [B, T] -> int64 [B, R] ascending."""
    order = torch.rand(valid.shape, generator=torch.Generator().manual_seed(int(valid.sum()))) + valid.float()
    return order.topk(count, 1).indices.sort(1).values


def chain_losses(drafter: Eagle3, batch: dict[str, Tensor | list[Tensor]], depth: int) -> tuple[Tensor, list, list]:
    """Weighted TTT loss, and per depth the number of argmax agreements and of scored rows."""
    total, hits, scored = torch.zeros(()), [], []
    alive = None
    steps = drafter.chain(batch["tokens"], batch["states"], batch["mask"], batch["rows"], depth)  # type: ignore[arg-type]
    for i, normed in enumerate(steps):
        valid, law, best = batch["valid"][i], batch["law"][i], batch["best"][i]
        logits = drafter.head(normed).float()
        loss = -(law * F.log_softmax(logits, -1)).sum(-1)
        in_vocabulary = batch["in_vocabulary"][i]
        counted = valid & in_vocabulary
        total = total + DEPTH_WEIGHT**i * (loss * counted).sum() / counted.sum().clamp(min=1)
        if not torch.is_grad_enabled():
            right = drafter.draft_ids[logits.argmax(-1)] == best
            alive = right if alive is None else alive & right
            hits.append((int((right & valid).sum()), int((alive & valid).sum())))
            scored.append(int(valid.sum()))
    return total, hits, scored


def train_drafters(
    data: Path,
    target_run: Path,
    out: Path,
    variants: dict[str, TrainedDrafter],
    *,
    steps: int,
    depth: int,
    seed: int,
    threads: int | None = None,
    muon_lr: float = 0.02,
    adam_lr: float = 0.002,
    lr_scale: float = 1.0,
    compiled: bool = False,
    outtype: str = "f16",
    init: Path | None = None,
) -> dict[str, float]:
    """Train every variant for `steps` steps of 4096 tokens; exports each to `out/NAME` (the speculators
    layout) and `out/NAME.gguf`. `init` is the run folder of earlier drafters to start from (weights only, fresh
    optimizer). Raises CheckpointError."""  # fmt: skip
    tune_allocator()
    if threads:
        torch.set_num_threads(threads)
    target = load_target(target_run)
    tokenizer = load_tokenizer(data / "tokenizer.json")
    bos = tokenizer.token_to_id(BOS)
    sizes = {(v.draft_vocab_size, v.capture_layers) for v in variants.values()}
    if len(sizes) != 1:
        raise UsageError("variants trained together share their draft vocabulary and captured layers")
    ((draft_size, capture),) = sizes
    draft_ids = torch.from_numpy(draft_vocabulary(data, draft_size, target.config.vocab_size))
    member = torch.zeros(target.config.vocab_size, dtype=torch.bool).index_fill_(0, draft_ids, True)
    drafters: dict[str, Eagle3] = {}
    for name, config in variants.items():
        torch.manual_seed(seed)  # the same draw for every twin: shared matrices start equal
        drafters[name] = Eagle3(config, target.embed.weight, draft_ids)
    together = nn.ModuleDict(drafters)
    if init is not None:
        _start_from(together, init)

    def hidden_matrix(name: str) -> bool:
        return "head" not in name

    optimizers = Separately(
        [
            Optimizers(d, muon_lr=muon_lr * lr_scale, adam_lr=adam_lr * lr_scale, is_matrix=hidden_matrix)
            for d in drafters.values()
        ]
    )
    batches = Batches(data, "train", length=LENGTH, rows=ROWS, seed=seed)
    held_out = Batches(data, "val", length=LENGTH, rows=ROWS, seed=0)

    @torch.no_grad()
    def prepare(tokens: np.ndarray, mask: np.ndarray, share: float) -> dict:
        """Everything the variants share: target states, its law per depth, and which rows count."""
        ids, mine = torch.from_numpy(tokens), torch.from_numpy(mask).bool()
        document = (ids == bos).cumsum(-1)
        pad = lambda x: F.pad(x, (0, depth + 1))  # noqa: E731
        seen, t = document_mask(ids, bos), ids.shape[1]
        with torch.autocast("cpu", torch.bfloat16):
            hidden, states = target(ids, seen, capture)
            logits = target.head(hidden.bfloat16())  # [B, T, V]
        best = logits.argmax(-1)

        def valid_at(i: int) -> Tensor:  # row s predicts x_{s+2+i}: the assistant's, in the same document
            shift = slice(2 + i, 2 + i + t)
            return pad(mine)[:, shift] & (F.pad(document, (0, depth + 2), value=-1)[:, shift] == document)

        rows = choose_rows(valid_at(0), int(t * share))
        where = [(rows + 1 + i).clamp(max=t - 1) for i in range(depth)]
        over_draft = torch.softmax(logits.index_select(-1, draft_ids).float(), -1)  # [B, T, D]
        law = [over_draft.gather(1, at[:, :, None].expand(-1, -1, draft_size)) for at in where]
        agreed = [best.gather(1, at) for at in where]
        return {
            "tokens": F.pad(ids, (0, depth + 1)), "states": states, "mask": seen, "rows": rows, "law": law,
            "best": agreed, "in_vocabulary": [member[b] for b in agreed],
            "valid": [valid_at(i).gather(1, rows) for i in range(depth)],
        }  # fmt: skip

    def variant_loss(drafter: Eagle3, batch: dict) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return chain_losses(drafter, batch, depth)[0]

    losses = {n: torch.compile(variant_loss, dynamic=False) if compiled else variant_loss for n in drafters}

    def loss_of(step: int):
        tokens, mask = batches[step]
        batch = prepare(tokens[:, :-1], mask[:, :-1], 0.5)
        each = {name: losses[name](d, batch) for name, d in drafters.items()}
        return sum(each.values()), {f"loss_{n}": round(float(v.detach()), 4) for n, v in each.items()}

    @torch.no_grad()
    def validate() -> dict[str, float]:
        figures: dict[str, float] = {}
        count = min(16, held_out.per_epoch)
        for name, drafter in drafters.items():
            loss, hits, scored = 0.0, np.zeros((depth, 2)), np.zeros(depth)
            for i in range(count):
                tokens, mask = held_out[i]
                with torch.autocast("cpu", torch.bfloat16):
                    value, right, rows = chain_losses(drafter, prepare(tokens[:, :-1], mask[:, :-1], 1.0), depth)
                loss, hits, scored = loss + float(value) / count, hits + np.asarray(right), scored + np.asarray(rows)
            figures[f"{name}_loss"] = loss
            for i in range(depth):
                figures[f"{name}_agree_{i}"] = hits[i, 0] / scored[i]
            # Forced tokens are the corpus', not the target's own: a lower bound that training can watch.
            figures[f"{name}_forced_tau"] = 1 + float((hits[:, 1] / scored).sum())
        return figures

    identity = {"kind": "drafters", "seed": seed, "steps": steps, "depth": depth,
                "variants": {n: v.to_dict() for n, v in variants.items()}}  # fmt: skip
    if lr_scale != 1:
        identity["lr_scale"] = lr_scale
    if init is not None:
        identity["init"] = str(init)
    figures = run_steps(
        out, identity, together, optimizers, steps=steps, loss_of=loss_of, validate=validate,  # type: ignore[arg-type]
        tokens_per_step=ROWS * LENGTH,
    )  # fmt: skip
    for name, drafter in drafters.items():
        export_drafter(drafter, out / name)
        convert_drafter(out / name, target_run / "hf", out / f"{name}.gguf", outtype)
    return figures


def _start_from(together: nn.ModuleDict, init: Path) -> None:
    """Take the weights of an earlier run, except the target's embedding and the draft vocabulary, which are this run's."""  # fmt: skip
    file = init / "checkpoint.pt"
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; name the run folder of trained drafters with --init")
    state = torch.load(file, map_location="cpu", weights_only=True)
    if state["identity"]["kind"] != "drafters":
        raise CheckpointError(f"{file}: a {state['identity']['kind']} run; --init wants drafters")
    trained = {name for name, parameter in together.named_parameters() if parameter.requires_grad}
    missing = sorted(trained - state["model"].keys())
    if missing:
        raise CheckpointError(f"{file}: has no {missing[0]}; --init wants the same variants")
    try:
        together.load_state_dict({name: state["model"][name] for name in trained}, strict=False)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{file}: does not fit the sizes asked for ({what})") from None


def export_drafter(drafter: Eagle3, out: Path) -> None:
    """Write config.json and model.safetensors in the speculators layout (float32)."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file(drafter.checkpoint_state(), str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(drafter.checkpoint_config(), indent=1))
