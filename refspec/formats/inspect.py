"""What a model is: a target or a drafter, every normalization flag in words, and what will run it.

Reads headers (and the d2t table), never the large tensors. `describe` gives the dictionary behind --json, `lines` the
text.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refspec.config import DrafterConfig, FeatureNorm, Feedback, Residual
from refspec.errors import CheckpointError
from refspec.formats import drafter_meta as meta
from refspec.formats.gguf_io import GgufInfo, read_gguf_header, read_tensor
from refspec.recommended import recommended

WORDS: dict[Any, str] = {
    FeatureNorm.NONE: "captured states enter fc as they are (EAGLE-3)",
    FeatureNorm.CONCAT: "one RMSNorm over all captured states together before fc (norm_before_fc)",
    FeatureNorm.PER_STATE: "one RMSNorm per captured state before fc (EAGLE 3.1, fc_norm)",
    Feedback.PRE_NORM: "a drafted row hands on its state before the final norm (EAGLE-3)",
    Feedback.POST_NORM: "a drafted row hands on its state after the final norm (EAGLE 3.1, norm_output)",
    Residual.RAW: "attention is added to the state itself (EAGLE-3)",
    Residual.NORMED: "attention is added to the normed state (norm_before_residual)",
}


def describe(path: str | os.PathLike[str], target: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Everything `refspec inspect` prints, as plain values for JSON; `CheckpointError` if it is not a model.

    `path` is a GGUF or a checkpoint directory; `target` supplies what a drafter's directory leaves to its target.
    """
    if Path(path).is_dir():
        from refspec.formats.inspect_checkpoint import describe_directory  # here: it needs this module's words

        return describe_directory(path, target)
    info = read_gguf_header(path)
    common = {
        "file": str(path),
        "kind": "drafter" if info.arch in meta.ARCHS else "target",
        "architecture": info.arch,
        "name": info.metadata.get("general.name"),
        "bytes": info.file_size,
        "parameters": sum(int(np.prod(t.shape)) for t in info.tensors.values() if t.type != "I64"),
        "weights": _weights(info),
        "tokenizer": _tokenizer(info),
    }
    return common | (_drafter(info) if info.arch in meta.ARCHS else _target(info))


def _weights(info: GgufInfo) -> dict[str, Any]:
    """Which types the matrices have: the type holding most weights, and the count of tensors of each."""
    size: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for t in info.tensors.values():
        count[t.type] += 1
        if len(t.shape) > 1:
            size[t.type] += int(np.prod(t.shape))
    return {"mostly": size.most_common(1)[0][0] if size else None, "tensors": dict(count.most_common())}


def _tokenizer(info: GgufInfo) -> dict[str, Any]:
    m = info.metadata
    tokens = m.get("tokenizer.ggml.tokens") or []

    def token(key: str) -> dict[str, Any] | None:
        i = m.get(f"tokenizer.ggml.{key}_token_id")
        if type(i) is not int:
            return None
        return {"id": i, "text": tokens[i] if i < len(tokens) else None}

    return {
        "model": m.get("tokenizer.ggml.model"),
        "pre": m.get("tokenizer.ggml.pre"),
        "tokens": len(tokens),
        "bos": token("bos"),
        "eos": token("eos"),
        "eot": token("eot"),
        "add_bos": m.get("tokenizer.ggml.add_bos_token"),
        "chat_template": isinstance(m.get("tokenizer.chat_template"), str),
    }


def _target(info: GgufInfo) -> dict[str, Any]:
    from refspec.engine.checks import STAGED_ARCHS  # here, because it loads llama.cpp

    m, a = info.metadata, info.arch
    hidden, heads = m.get(f"{a}.embedding_length"), m.get(f"{a}.attention.head_count")
    head_dim = m.get(f"{a}.attention.key_length")
    if head_dim is None and type(hidden) is int and type(heads) is int and heads:
        head_dim = hidden // heads
    embd = info.tensors.get("token_embd.weight")
    n_layer = m.get(f"{a}.block_count")
    warnings = (
        [] if m.get("tokenizer.chat_template") else ["no chat template: use --raw, or prompts are sent as they are"]
    )
    if embd is None:
        warnings.append("no token embedding: not a text model llama.cpp can run alone")
    return {
        "sizes": {
            "layers": n_layer, "hidden": hidden, "heads": heads, "kv_heads": m.get(f"{a}.attention.head_count_kv", heads),
            "head_dim": head_dim, "feed_forward": m.get(f"{a}.feed_forward_length"),
            "vocabulary": embd.shape[0] if embd is not None else m.get(f"{a}.vocab_size"),
            "context": m.get(f"{a}.context_length"),
        },
        "recommended_sampling": str(recommended(info.metadata, str(info.path))) or None,
        "tied_head": "output.weight" not in info.tensors,
        "default_capture_layers": [2, n_layer // 2, n_layer - 3] if type(n_layer) is int and n_layer > 5 else None,
        "hidden_states": "staged layer inputs" if a in STAGED_ARCHS else "evaluation callback",
        "runs_in": ["refspec (as target, -m)", "stock llama.cpp"],
        "warnings": warnings,
    }  # fmt: skip


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


def _source(info: GgufInfo, name: str) -> str:
    said = info.metadata.get(f"refspec.provenance.{name}")
    if isinstance(said, str):
        return said.split("; ", 1)[-1]
    if name in ("qk_norm", "biases"):
        return "tensors"
    return f"metadata refspec.{name}" if f"refspec.{name}" in info.metadata else "llama.cpp's eagle3 architecture"


def _drafter(info: GgufInfo) -> dict[str, Any]:
    config = meta.from_metadata(info)
    meta.fc_norm_values(info, config)  # says so here if they are missing
    reasons = meta.stock_reasons(config)
    warnings = []
    if info.metadata.get("tokenizer.ggml.model", "none") == "none":
        warnings.append("no tokenizer inside: that it fits a target can be told by width and vocabulary size only")
    if reasons and info.arch == meta.STOCK_ARCH:
        warnings.append("its architecture name says stock llama.cpp runs it, but it would compute something else")
    unused = [t for t in info.tensors if meta.weights_name(t) is None]
    warnings += [f"tensor {t} is present and never applied" for t in unused]
    if not config.uses_output_norm and meta.TENSORS["output_norm"] in info.tensors:
        warnings.append("output_norm is present and never applied: head_norm = no and pre-norm feedback")
    return {
        "sizes": {
            "hidden": config.hidden_size, "target_hidden": config.target_hidden_size, "heads": config.n_heads,
            "kv_heads": config.n_kv_heads, "head_dim": config.head_dim, "feed_forward": config.intermediate_size,
            "vocabulary": config.vocab_size, "context": config.context_length,
        },
        "capture_layers": list(config.capture_layers),
        "draft_vocabulary": _coverage(info, config),
        "flags": switches(config, lambda name: _source(info, name)),
        "provenance": {k.removeprefix("refspec.provenance."): v for k, v in info.metadata.items()
                       if k.startswith("refspec.provenance.")},
        "taken_from_target": [n for n in meta.SHARED if meta.TENSORS[n] not in info.tensors],
        "runs_in": runs_in(config),
        "not_stock_because": reasons,
        "warnings": warnings,
    }  # fmt: skip


def _coverage(info: GgufInfo, config: DrafterConfig) -> dict[str, Any]:
    d, v = config.draft_vocab_size, config.vocab_size
    out: dict[str, Any] = {"tokens": d, "of": v, "share": d / v}
    if "d2t" in info.tensors:
        ids = read_tensor(info, "d2t")
        if ids.dtype.kind != "i" or ids.min() < 0 or ids.max() >= v or len(np.unique(ids)) != len(ids):
            raise CheckpointError(f"{info.path}: d2t does not hold {d} different token ids below {v}; convert it again")
        out |= {"lowest_id": int(ids.min()), "highest_id": int(ids.max())}
    return out


def _sizes_text(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sizes.items() if v is not None)


def _from(about: dict[str, Any], name: str) -> str:
    _, _, source = str(about["provenance"].get(name, "")).partition("; ")
    return f" [{source}]" if source else ""


def lines(about: dict[str, Any]) -> list[str]:
    """The text `refspec inspect` prints, one fact per line, from the dictionary of `describe`."""
    w, t = about["weights"], about["tokenizer"]
    kinds = ", ".join(f"{n} {kind}" for kind, n in w["tensors"].items())
    out = [
        f"{about['file']}: {about['kind']}, architecture {about['architecture']}"
        + (f", name {about['name']}" if about["name"] else ""),
        f"  size             {about['bytes'] / 1e6:.2f} MB, {about['parameters'] / 1e6:.2f} M parameters",
        f"  weights          mostly {w['mostly']} ({kinds} tensors)",
        f"  sizes            {_sizes_text(about['sizes'])}",
    ]
    if t["model"] in (None, "none"):
        out.append("  tokenizer        none")
    else:
        ends = ", ".join(f"{k} {t[k]['id']} {t[k]['text']!r}" for k in ("bos", "eos", "eot") if t[k])
        pre = f" ({t['pre']})" if t["pre"] else ""
        told = f", {ends}, BOS added: {t['add_bos']}" if ends else ""
        out.append(f"  tokenizer        {t['model']}{pre}, {t['tokens']} tokens{told}")
    if about["kind"] == "target":
        out.append(f"  chat template    {'yes' if t['chat_template'] else 'no'}")
        out.append(f"  output head      {'tied to the embedding' if about['tied_head'] else 'own'}")
        out.append(f"  hidden states    by {about['hidden_states']}")
        if about.get("recommended_sampling"):
            out.append(f"  recommends       {about['recommended_sampling']} (refspec generate --recommended)")
    else:
        bounds = ", ".join("embeddings" if b == 0 else f"{b} (entering layer {b})" for b in about["capture_layers"])
        d = about["draft_vocabulary"]
        ids = f", ids {d['lowest_id']}..{d['highest_id']}" if "lowest_id" in d else ""
        out.append(f"  captured states  {f'residual stream at {bounds}' if bounds else 'undecided'}{_from(about, 'capture_layers')}")
        for name in ("layout", "rope", "stock"):
            if said := about["provenance"].get(name):
                out.append(f"  {name:<16} {said.split('; ', 1)[0]}{_from(about, name)}")
        out.append(f"  draft tokens     {d['tokens']} of {d['of']} ({100 * d['share']:.1f} %){ids}")
        for name, f in about["flags"].items():
            value = {True: "yes", False: "no"}.get(f["value"], f["value"])
            out.append(f"  {name:<16} {value}: {f['meaning']} [{f['source']}]")
        if about["taken_from_target"]:
            out.append(f"  from the target  {', '.join(about['taken_from_target'])}")
    out.append(f"  runs in          {', '.join(about['runs_in'])}")
    out += [f"  not stock        stock llama.cpp: {reason}" for reason in about.get("not_stock_because", [])]
    return out + [f"  warning          {warning}" for warning in about["warnings"]]
