"""What `refspec inspect` says of a GGUF and of a checkpoint alike: switches in words, sizes, and what runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from refspec.gguf import drafter_meta as meta
from refspec.reference.config import DrafterConfig, FeatureNorm, Feedback, Residual

WORDS: dict[Any, str] = {
    FeatureNorm.NONE: "captured states enter fc as they are (EAGLE-3)",
    FeatureNorm.CONCAT: "one RMSNorm over all captured states together before fc (norm_before_fc)",
    FeatureNorm.PER_STATE: "one RMSNorm per captured state before fc (EAGLE 3.1, fc_norm)",
    Feedback.PRE_NORM: "a drafted row hands on its state before the final norm (EAGLE-3)",
    Feedback.POST_NORM: "a drafted row hands on its state after the final norm (EAGLE 3.1, norm_output)",
    Residual.RAW: "attention is added to the state itself (EAGLE-3)",
    Residual.NORMED: "attention is added to the normed state (norm_before_residual)",
}
NO_TEMPLATE = "no chat template: use --raw, or prompts are sent as they are"


def switches(config: DrafterConfig, source: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Every switch with its meaning in words and where it came from, `source(name)`."""
    out: dict[str, dict[str, Any]] = {}
    for name in ("feature_norm", "feedback", "residual"):
        value = getattr(config, name)
        out[name] = {"value": value.value, "meaning": WORDS[value], "source": source(name)}
    head = "a norm before the output head" if config.head_norm else "no norm before the output head (old SpecForge)"
    out["head_norm"] = {"value": config.head_norm, "meaning": head, "source": source("head_norm")}
    qk = "query and key heads are normed" if config.qk_norm else "query and key heads are not normed"
    out["qk_norm"] = {"value": config.qk_norm, "meaning": qk, "source": source("qk_norm")}
    names = ", ".join(config.biases)
    biases = "each of these matrices adds one" if names else "no matrix has a bias"
    out["biases"] = {"value": names or "none", "meaning": biases, "source": source("biases")}
    return out


def runs_in(config: DrafterConfig, needs: str = "", *, undecided: bool = False) -> list[str]:
    """What runs a drafter: refspec, stock llama.cpp, vLLM; `needs` is the command that comes first."""
    after = f"after {needs}" if needs else ""
    own = "on its own kernels" if meta.graph_reasons(config) and not undecided else ""
    out = [f"refspec ({', '.join(word for word in ('as drafter, -d', own, after) if word)})"]
    if undecided:
        return out
    if not meta.stock_reasons(config):
        out.append(f"stock llama.cpp{f' ({after})' if after else ''}")
    if config.head_norm and not config.qk_norm and not {"fc", "output"} & set(config.biases):
        new = config.feature_norm is FeatureNorm.PER_STATE or config.feedback is Feedback.POST_NORM
        how = "" if needs else ", after refspec export --format speculators"
        out.append(f"vLLM ({'with EAGLE 3.1: fc_norm, norm_output' if new else 'eagle3'}{how})")
    return out


def weights(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    """From (type, shape) of every tensor: the type that holds most numbers of the matrices, and tensors by type."""
    size: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for kind, shape in tensors:
        count[kind] += 1
        if len(shape) > 1:
            size[kind] += int(np.prod(shape, dtype=np.int64))
    return {"mostly": size.most_common(1)[0][0] if size else None, "tensors": dict(count.most_common())}


def drafter_sizes(c: DrafterConfig) -> dict[str, Any]:
    """The sizes of a drafter by the names that are printed."""
    return {
        "hidden": c.hidden_size, "target_hidden": c.target_hidden_size, "heads": c.n_heads, "kv_heads": c.n_kv_heads,
        "head_dim": c.head_dim, "feed_forward": c.intermediate_size, "vocabulary": c.vocab_size,
        "context": c.context_length,
    }  # fmt: skip


def coverage(c: DrafterConfig, d2t: Any) -> dict[str, Any]:
    """How much of the target's vocabulary can be drafted; d2t [D] are target ids, None where there is no such table."""
    out = {"tokens": c.draft_vocab_size, "of": c.vocab_size, "share": c.draft_vocab_size / c.vocab_size}
    return out if d2t is None else out | {"lowest_id": int(d2t.min()), "highest_id": int(d2t.max())}
