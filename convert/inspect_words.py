"""Every switch of a drafter in words, and what runs it:

what `refspec inspect` says of a GGUF and of a checkpoint alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def switches(config: DrafterConfig, source: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Every switch with its meaning in words and where it came from, `source(name)`."""
    out: dict[str, dict[str, Any]] = {}
    for name in ("feature_norm", "feedback", "residual"):
        value = getattr(config, name)
        out[name] = {"value": value.value, "meaning": WORDS[value], "source": source(name)}
    head = (
        "a norm stands before the output head" if config.head_norm else "no norm before the output head (old SpecForge)"
    )
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
