"""`refspec train target`: next-token training of a chat model, and its export as a Hugging Face directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from refspec.convert import convert_target
from refspec.errors import CheckpointError, UsageError
from refspec.train.data import Batches
from refspec.train.loop import Optimizers, read_checkpoint, run_steps, tune_allocator
from refspec.train.model import Target, TargetConfig, document_mask
from refspec.train.packing import Ahead, InTurn, WholeDocuments
from refspec.train.precision import choose_device, compute_type, mixed
from refspec.train.start import start_target
from refspec.train.tokenizer import BOS, CHAT_TEMPLATE, EOS, TURN_END, load_tokenizer

TOKENS_PER_STEP = 4096
MOST_IN_A_ROW = 1024
# (until this share of the run, tokens in a row). Cut rows of 256 while the model learns words (attention is cheap), of
# 1024 for the last quarter (context). Whole conversations, for a model that already knows words, want longer rows from
# the start.
PHASES = {"cut": ((0.75, 256), (1.0, 1024)), "whole": ((0.85, 512), (1.0, 1024))}

# (ids int64 [N, T+1], wanted bool [N, T]) -> float32 [W, V]: the model's logits where `wanted`; labels are ids[:, 1:]
LogitsOf = Callable[[Tensor, Tensor], Tensor]


class ExtraLoss(Protocol):
    """A term that some steps of `train_target` add to the cross-entropy."""

    identity: dict[str, Any]  # options that a resumed run must share

    def __call__(self, step: int, logits_of: LogitsOf) -> Tensor | None:
        """The term of this step, weight included; None for a step without one."""


def is_hidden_matrix(name: str) -> bool:
    """Whether the parameter is a matrix of a block: those go to Muon, the embedding to AdamW."""
    return "embed" not in name


def train_target(
    data: Path | Sequence[Path],
    out: Path,
    *,
    config: TargetConfig,
    steps: int,
    seed: int,
    threads: int | None = None,
    muon_lr: float = 0.02,
    adam_lr: float = 0.004,
    lr_scale: float = 1.0,
    compiled: bool = False,
    outtype: str = "f16",
    init: Path | None = None,
    rows: str = "cut",
    device: str = "auto",
    batch_tokens: int | None = None,
    weight_decay: float = 0.01,
    finish: Path | None = None,
    finish_from: float = 0.6,
    extra_loss: ExtraLoss | None = None,
) -> dict[str, float]:
    """Train for `steps` steps of `batch_tokens` (4096) tokens, resuming from `out/checkpoint.pt`; exports `out/hf` and
    `out/target.gguf`.

    `init` is a Hugging Face directory to start from: weights only, of the same sizes but for `intermediate_size` and
    the number of layers, which may be larger: the model then begins as the same function (`widened`, `deepened`).
    `compiled` fuses each block with torch.compile, which needs a C++ compiler. `rows` is a key of `PHASES`. Several
    `data` folders are read in turn; tokenizer and held-out text are the first one's. From the share `finish_from` of
    the steps on, batches are those of the folder `finish`, if given. `weight_decay` is that of the blocks' matrices.
    `extra_loss` adds a term of its own to some steps, and its identity to the run's. Raises CheckpointError and
    UsageError.
    """
    tune_allocator()
    if threads:
        torch.set_num_threads(threads)
    on = choose_device(device)
    batch_tokens = batch_tokens or TOKENS_PER_STEP
    if batch_tokens % MOST_IN_A_ROW:
        raise UsageError(f"--batch-tokens {batch_tokens} is no multiple of {MOST_IN_A_ROW}, the longest row")
    torch.manual_seed(seed)
    folders = [data] if isinstance(data, Path) else list(data)
    for other in [*folders[1:], *([finish] if finish else [])]:
        _same_tokenizer(folders[0], other)
    bos = load_tokenizer(folders[0] / "tokenizer.json").token_to_id(BOS)
    model = Target(config)
    if init is not None:
        start_target(model, init)
    model.to(on)
    if compiled:
        for block in model.layers:
            block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
    optimizers = Optimizers(
        model, muon_lr=muon_lr * lr_scale, adam_lr=adam_lr * lr_scale, is_matrix=is_hidden_matrix,
        weight_decay=weight_decay,
    )  # fmt: skip

    def source(read: list[Path], length: int) -> InTurn | Ahead:
        many = batch_tokens // length
        made = InTurn(
            [
                WholeDocuments(folder, "train", length=length, rows=many, seed=seed, bos=bos)
                if rows == "whole"
                else Batches(folder, "train", length=length, rows=many, seed=seed)
                for folder in read
            ]
        )
        return Ahead(made) if on.type == "cuda" else made

    # (until this share of the steps, rows of this length, of these folders), in the order of the run
    plan = [(until, length, folders) for until, length in PHASES[rows]]
    if finish is not None:
        first = [(min(until, finish_from), length, folders) for until, length, _ in plan]
        plan = [p for i, p in enumerate(first) if i == 0 or p[0] > first[i - 1][0]]
        plan += [(until, length, [finish]) for until, length in PHASES[rows] if until > finish_from]
    batches = [(until, source(read, length)) for until, length, read in plan]
    held_out = Batches(folders[0], "val", length=512, rows=8, seed=0)

    def hidden_of(ids: Tensor) -> Tensor:
        return model(ids[:, :-1], document_mask(ids[:, :-1], bos))[0].to(compute_type(on))

    def cross_entropy(tokens) -> Tensor:
        ids = torch.from_numpy(tokens).to(on)
        with mixed(on):
            logits = model.head(hidden_of(ids))
        # A document's BOS follows nothing the model can know; predicting it is not its task.
        wanted = ids[:, 1:].masked_fill(ids[:, 1:] == bos, -100)
        return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())

    def logits_of(ids: Tensor, wanted: Tensor) -> Tensor:
        ids, wanted = ids.to(on), wanted.to(on)
        with mixed(on):
            return model.head(hidden_of(ids)[wanted]).float()  # only the head sees the shape that `wanted` has

    parts: dict[str, Tensor] = {}  # for the log: the extra term keeps its last value between the steps that have one

    def loss_of(step: int):
        now = next(b for until, b in batches if step < until * steps)
        loss = cross_entropy(now[step][0])
        if extra_loss is None:
            return loss, {}
        parts["cross_entropy"] = loss.detach()
        if (term := extra_loss(step, logits_of)) is not None:
            parts["extra_loss"] = term.detach()
            loss = loss + term
        return loss, parts

    @torch.no_grad()
    def validate() -> dict[str, float]:
        count = min(24, held_out.per_epoch)
        with torch.compiler.set_stance("force_eager"):  # its rows are of another shape: not worth compiling
            return {"val_loss": sum(float(cross_entropy(held_out[i][0])) for i in range(count)) / count}

    identity = {"kind": "target", "seed": seed, "steps": steps, **config.to_dict()}
    if len(folders) > 1:
        identity["data"] = [str(folder) for folder in folders]
    if lr_scale != 1:
        identity["lr_scale"] = lr_scale
    if init is not None:
        identity["init"] = str(init)
    if rows != "cut":
        identity["rows"] = rows
    if batch_tokens != TOKENS_PER_STEP:
        identity["batch_tokens"] = batch_tokens
    if weight_decay != 0.01:
        identity["weight_decay"] = weight_decay
    if finish is not None:
        identity |= {"finish": str(finish), "finish_from": finish_from}
    if extra_loss is not None:
        identity |= extra_loss.identity
    figures = run_steps(
        out, identity, model, optimizers, steps=steps, loss_of=loss_of, validate=validate,
        tokens_per_step=batch_tokens,
    )  # fmt: skip
    export_target(model, folders[0], out / "hf")
    convert_target(out / "hf", out / "target.gguf", outtype)
    return figures


def _same_tokenizer(data: Path, other: Path) -> None:
    """UsageError unless both folders mean the same by a token id."""
    here, there = (load_tokenizer(folder / "tokenizer.json").get_vocab() for folder in (data, other))
    if here != there:
        raise UsageError(
            f"{other}: its tokenizer is not that of {data}; make it with"
            f" `refspec train data --tokenizer {data}/tokenizer.json`"
        )


def export_target(model: Target, data: Path, out: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and the chat template as Hugging Face lays them out."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(data / "tokenizer.json")
    bos, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(TURN_END)
    save_file(model.hf_state(), str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(model.hf_config(bos, end), indent=1))
    (out / "tokenizer.json").write_text((data / "tokenizer.json").read_text())
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    special = {"bos_token": BOS, "eos_token": TURN_END, "pad_token": EOS, "chat_template": CHAT_TEMPLATE}
    (out / "tokenizer_config.json").write_text(json.dumps(special, indent=1))


def load_target(run: Path) -> Target:
    """The target of a run folder or a Hugging Face directory, in evaluation mode. Raises CheckpointError."""
    checkpoint = run / "checkpoint.pt"
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint)
        fields = {k: v for k, v in state["identity"].items() if k in TargetConfig.__dataclass_fields__}
        model = Target(TargetConfig(**fields))
        model.load_state_dict(state["model"])
    elif (hf_directory(run) / "config.json").is_file():
        model = Target(hf_target_config(hf_directory(run) / "config.json"))
        start_target(model, hf_directory(run))
    else:
        raise CheckpointError(
            f"{checkpoint}: no such file; train the target first, name its run folder, or what"
            " `refspec export --format hf` made of a GGUF"
        )
    return model.eval().requires_grad_(False)


def hf_directory(run: Path) -> Path:
    """Where the target that `load_target` reads lies as a Hugging Face directory."""
    inside = (run / "checkpoint.pt").is_file() or (run / "hf" / "config.json").is_file()
    return run / "hf" if inside else run


def hf_target_config(file: Path) -> TargetConfig:
    """Sizes in a Hugging Face config.json; CheckpointError for a model that `model.Target` does not compute."""
    try:
        c: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(c, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    rope: dict[str, Any] = c.get("rope_parameters") or c.get("rope_scaling") or {}
    wanted = {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    # what Hugging Face takes a missing key to mean
    plain = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    found = {key: c.get(key, plain.get(key)) for key in wanted} | {
        "rope_type": rope.get("rope_type", rope.get("type", "default"))
    }
    for key, value in (wanted | {"rope_type": "default"}).items():
        if found[key] != value:
            raise CheckpointError(
                f"{file}: {key} = {found[key]!r}; drafters are trained here for targets with {value!r} only"
            )
    names = {
        "vocab_size": "vocab_size", "hidden_size": "hidden_size", "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads", "intermediate_size": "intermediate_size", "rms_eps": "rms_norm_eps",
        "context_length": "max_position_embeddings",
    }  # fmt: skip
    if missing := [key for key in names.values() if key not in c]:
        raise CheckpointError(f"{file}: has no {missing[0]}; name a complete Hugging Face directory")
    heads, theta = c["num_attention_heads"], rope.get("rope_theta") or c.get("rope_theta") or 10000.0
    return TargetConfig(
        **{ours: c[theirs] for ours, theirs in names.items()}, n_kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads, rope_theta=theta,
    )  # fmt: skip
