"""Does this drafter fit this target? What the two files say, then a short run, each finding with its likely cause.

The run is just long enough to tell a wrong pair from a right one. The files are compared here, the run and its
detectors are `evaluate/check_live.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

from refspec.errors import CheckpointError, RefspecError
from refspec.evaluate.check_live import run_pair
from refspec.evaluate.finding import MISFIT, NOTE, OK, Finding
from refspec.gguf import drafter_meta as meta
from refspec.gguf.header import GgufInfo
from refspec.gguf.io import read_gguf_header, read_tensor
from refspec.gguf.target_checks import check_boundaries
from refspec.llama.pair_checks import drafter_config
from refspec.reference.config import DrafterConfig


def check(
    target: str | os.PathLike[str], drafter: str | os.PathLike[str], *, live: bool = True, threads: int | None = None,
    prompts: int = 6, max_tokens: int = 48, progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Every finding about a pair of GGUF files; `fits` is False when one is a misfit.

    With `live`, and unless the files alone rule the pair out, `max_tokens` are generated after `prompts` built-in
    prompts. Raises `CheckpointError` for a damaged file.
    """
    first, second = read_gguf_header(target), read_gguf_header(drafter)
    if first.arch in meta.ARCHS:
        raise CheckpointError(f"{first.path}: is a drafter ({first.arch}); give the target first, then the drafter")
    config = meta.from_metadata(second)
    findings = compare(first, second, config)
    run: dict[str, Any] | None = None
    if live and all(f.level != MISFIT for f in findings):
        how: dict[str, Any] = {"threads": threads, "prompts": prompts, "max_tokens": max_tokens, "progress": progress}
        run, more = run_pair(first, second, config, **how)
        findings += more
    return {
        "target": str(first.path), "drafter": str(second.path), "fits": all(f.level != MISFIT for f in findings),
        "findings": [f._asdict() for f in findings], "run": run,
    }  # fmt: skip


def compare(target: GgufInfo, drafter: GgufInfo, config: DrafterConfig) -> list[Finding]:
    """Everything the two headers say of each other: width, vocabulary, tokenizer, layers, RoPE, what runs it."""
    a = target.arch
    return [
        _equal("width", "captured states", config.target_hidden_size, target.metadata.get(f"{a}.embedding_length")),
        _equal("vocabulary", "tokens", config.vocab_size, _vocabulary(target)),
        _tokenizer(target, drafter),
        _draft_vocabulary(drafter, config),
        _layers(target, config),
        _lent(target, drafter, config),
        _rope(target, drafter, config),
        _engine(drafter),
    ]


def _equal(about: str, what: str, ours: int, theirs: Any) -> Finding:
    if ours == theirs:
        return Finding(about, OK, f"{ours} {what} in both")
    said = f"{ours} {what} in the drafter, {theirs} in the target"
    return Finding(about, MISFIT, said, "it was trained for another target")


def _vocabulary(target: GgufInfo) -> Any:
    embedding = target.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding is not None else target.metadata.get(f"{target.arch}.vocab_size")


def tokenizer_hash(info: GgufInfo) -> str | None:
    """Twelve hexadecimal digits of the token strings in order, None for a file without a tokenizer."""
    tokens = info.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or info.metadata.get("tokenizer.ggml.model") == "none":
        return None
    return hashlib.sha256("\0".join(map(str, tokens)).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _tokenizer(target: GgufInfo, drafter: GgufInfo) -> Finding:
    ours, theirs = tokenizer_hash(drafter), tokenizer_hash(target)
    if ours is None or theirs is None:
        which = "drafter" if ours is None else "target"
        return Finding("tokenizer", NOTE, f"the {which} has none inside, so token strings cannot be compared",
                       "it was converted without --target" if ours is None else "")  # fmt: skip
    if ours == theirs:
        return Finding("tokenizer", OK, f"the same token strings in both ({ours})")
    pairs = zip(drafter.metadata["tokenizer.ggml.tokens"], target.metadata["tokenizer.ggml.tokens"], strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    where = "other counts of tokens" if first is None else f"token {first} is the first that differs"
    return Finding("tokenizer", MISFIT, f"other token strings ({ours}, target {theirs}): {where}",
                   "it was trained, or converted, for a target with another vocabulary")  # fmt: skip


def _draft_vocabulary(drafter: GgufInfo, config: DrafterConfig) -> Finding:
    d, v = config.draft_vocab_size, config.vocab_size
    if "d2t" not in drafter.tensors:
        level, cause = (OK, "") if d == v else (MISFIT, "d2t was lost in conversion")
        return Finding("draft tokens", level, f"{d} of {v}, no d2t", cause)
    ids = read_tensor(drafter, "d2t")
    if ids.min() < 0 or ids.max() >= v or len(set(ids.tolist())) != len(ids):
        said = f"d2t does not hold {d} different ids below {v}"
        return Finding("draft tokens", MISFIT, said, "offsets were taken for ids")
    return Finding("draft tokens", OK, f"{d} of {v} ({100 * d / v:.1f} %), ids {ids.min()}..{ids.max()}")


def _layers(target: GgufInfo, config: DrafterConfig) -> Finding:
    n, layers = target.metadata.get(f"{target.arch}.block_count"), config.capture_layers
    said = f"boundaries {', '.join(map(str, layers))} of {n} layers"
    if type(n) is not int:
        return Finding("layers", MISFIT, f"the target does not say how many layers it has ({n!r})")
    try:
        check_boundaries(target.path, target.arch, n, layers)
    except RefspecError as error:
        return Finding("layers", MISFIT, str(error), "it was trained for a target with more layers")
    default = (2, n // 2, n - 3)
    if len(set(default)) < 3 or n < 6:  # too few layers for a default
        return Finding("layers", OK, said)
    if layers == default:
        return Finding("layers", OK, f"{said}, every trainer's default")
    if layers == tuple(b - 1 for b in default):
        return Finding("layers", NOTE, f"{said}: each one below every trainer's default {default}",
                       "ids that count layer outputs were taken for boundaries; convert with --layer-ids "
                       + ",".join(map(str, default)))  # fmt: skip
    return Finding("layers", OK, f"{said} (the trainers' default would be {default})")


def _lent(target: GgufInfo, drafter: GgufInfo, config: DrafterConfig) -> Finding:
    missing = [name for name in meta.SHARED if meta.TENSORS[name] not in drafter.tensors]
    if not missing:
        return Finding("own tensors", OK, "it brings its own embedding and head")
    said = f"{' and '.join(missing)} come from the target"
    hidden = target.metadata.get(f"{target.arch}.embedding_length")
    if config.hidden_size == hidden:
        return Finding("own tensors", OK, said)
    said += f", but the drafter is {config.hidden_size} wide and the target {hidden}"
    return Finding("own tensors", MISFIT, said, "the checkpoint was converted without its embeddings")


def _rope(target: GgufInfo, drafter: GgufInfo, config: DrafterConfig) -> Finding:
    theirs = float(target.metadata.get(f"{target.arch}.rope.freq_base", 10000.0))
    scaled = [_scaling(info, prefix) for info, prefix in ((drafter, meta.STOCK_ARCH), (target, target.arch))]
    said = f"base {config.rope_theta:g}, {scaled[0]}; target base {theirs:g}, {scaled[1]}"
    if abs(config.rope_theta - theirs) <= 1e-6 * theirs and scaled[0] == scaled[1]:
        return Finding("RoPE", OK, said)
    return Finding("RoPE", NOTE, f"{said}; a drafter need not have its target's, but most trainers copy it",
                   "a config.json without rope_theta means 10000 to some trainers; --rope-theta overrides")  # fmt: skip


def _scaling(info: GgufInfo, prefix: str) -> str:
    kind = info.metadata.get(f"{prefix}.rope.scaling.type", "none")
    if "rope_freqs.weight" in info.tensors:
        return "frequencies divided"
    return "not scaled" if kind == "none" else f"{kind} scaling"


def _engine(drafter: GgufInfo) -> Finding:
    try:
        reasons = meta.graph_reasons(drafter_config(drafter, in_graph=False))
    except RefspecError as error:
        return Finding("engine", MISFIT, str(error))
    if reasons:
        return Finding("engine", NOTE, f"refspec's own kernels run it: llama.cpp cannot ({'; '.join(reasons)})")
    return Finding("engine", OK, "llama.cpp runs it")


def lines(found: dict[str, Any]) -> list[str]:
    """The lines that `refspec check` prints, from the dictionary of `check`."""
    out = [f"{found['drafter']} on {found['target']}"]
    for f in found["findings"]:
        out.append(f"  {f['level']:<7} {f['about']:<14} {f['said']}")
        if f["cause"]:
            out.append(f"  {'':<7} {'':<14} likely cause: {f['cause']}")
    misfits = [f["about"] for f in found["findings"] if f["level"] == MISFIT]
    return [*out, f"does not fit: {', '.join(misfits)}" if misfits else "fits"]
