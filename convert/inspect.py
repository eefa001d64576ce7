"""What a model is: a target or a drafter, every normalization switch in words, and what runs it.

Reads headers and the d2t table, never the large tensors. `describe` gives the dictionary behind --json, `lines` the
text. GGUF files are described here, checkpoint directories in `inspect_checkpoint.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refspec.convert.flags import default_layers
from refspec.convert.inspect_checkpoint import describe_directory
from refspec.convert.inspect_words import NO_TEMPLATE, coverage, drafter_sizes, runs_in, switches, weights
from refspec.errors import CheckpointError, reads_file
from refspec.gguf import drafter_meta as meta
from refspec.gguf.header import FilePath
from refspec.gguf.io import GgufInfo, read_gguf_header, read_tensor
from refspec.gguf.recommended_sampling import recommended
from refspec.gguf.target_checks import STAGED_ARCHS
from refspec.reference.config import DrafterConfig


@reads_file
def describe(path: FilePath, target: FilePath | None = None) -> dict[str, Any]:
    """Everything `refspec inspect` prints, as plain values for JSON; `CheckpointError` if it is not a model.

    `path` is a GGUF or a checkpoint directory; `target` supplies what a drafter's directory leaves to its target.
    """
    if Path(path).is_dir():
        return describe_directory(path, target)
    info = read_gguf_header(path)
    common = {
        "file": str(path), "kind": "drafter" if info.arch in meta.ARCHS else "target",
        "architecture": info.arch, "name": info.metadata.get("general.name"), "bytes": info.file_size,
        "parameters": sum(int(np.prod(t.shape)) for t in info.tensors.values() if t.type != "I64"),
        "weights": weights((t.type, t.shape) for t in info.tensors.values()),
        "tokenizer": _tokenizer(info),
    }  # fmt: skip
    return common | (_drafter(info) if info.arch in meta.ARCHS else _target(info))


def _tokenizer(info: GgufInfo) -> dict[str, Any]:
    m = info.metadata
    tokens = m.get("tokenizer.ggml.tokens") or []

    def token(key: str) -> dict[str, Any] | None:
        i = m.get(f"tokenizer.ggml.{key}_token_id")
        if type(i) is not int:
            return None
        return {"id": i, "text": tokens[i] if 0 <= i < len(tokens) else None}

    return {
        "model": m.get("tokenizer.ggml.model"), "pre": m.get("tokenizer.ggml.pre"), "tokens": len(tokens),
        "bos": token("bos"), "eos": token("eos"), "eot": token("eot"), "add_bos": m.get("tokenizer.ggml.add_bos_token"),
        "chat_template": isinstance(m.get("tokenizer.chat_template"), str),
    }  # fmt: skip


def _target(info: GgufInfo) -> dict[str, Any]:
    m, a = info.metadata, info.arch
    hidden, heads = m.get(f"{a}.embedding_length"), m.get(f"{a}.attention.head_count")
    head_dim = m.get(f"{a}.attention.key_length")
    if head_dim is None and type(hidden) is int and type(heads) is int and heads:
        head_dim = hidden // heads
    embd = info.tensors.get("token_embd.weight")
    n_layer = m.get(f"{a}.block_count")
    warnings = [] if m.get("tokenizer.chat_template") else [NO_TEMPLATE]
    if embd is None:
        warnings.append("no token embedding: llama.cpp cannot run it alone")
    return {
        "sizes": {
            "layers": n_layer, "hidden": hidden, "heads": heads,
            "kv_heads": m.get(f"{a}.attention.head_count_kv", heads),
            "head_dim": head_dim, "feed_forward": m.get(f"{a}.feed_forward_length"),
            "vocabulary": embd.shape[0] if embd is not None else m.get(f"{a}.vocab_size"),
            "context": m.get(f"{a}.context_length"),
        },
        "recommended_sampling": str(recommended(info.metadata, str(info.path))) or None,
        "tied_head": "output.weight" not in info.tensors,
        "default_capture_layers": list(default_layers(n_layer)) or None,
        "hidden_states": "staged layer inputs" if a in STAGED_ARCHS else "evaluation callback",
        "runs_in": ["refspec (as target, -m)", "stock llama.cpp"],
        "warnings": warnings,
    }  # fmt: skip


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
        warnings.append("no tokenizer inside: only width and vocabulary size show whether it fits a target")
    if reasons and info.arch == meta.STOCK_ARCH:
        warnings.append("its architecture name lets stock llama.cpp run it, which would compute something else")
    unused = [t for t in info.tensors if meta.weights_name(t) is None]
    warnings += [f"tensor {t} is present and never applied" for t in unused]
    if not config.uses_output_norm and meta.TENSORS["output_norm"] in info.tensors:
        warnings.append("output_norm is present and never applied: head_norm = no and pre-norm feedback")
    return {
        "sizes": drafter_sizes(config),
        "capture_layers": list(config.capture_layers),
        "draft_vocabulary": coverage(config, _d2t(info, config)),
        "flags": switches(config, lambda name: _source(info, name)),
        "provenance": {k.removeprefix("refspec.provenance."): v for k, v in info.metadata.items()
                       if k.startswith("refspec.provenance.")},
        "taken_from_target": [n for n in meta.SHARED if meta.TENSORS[n] not in info.tensors],
        "runs_in": runs_in(config),
        "not_stock_because": reasons,
        "warnings": warnings,
    }  # fmt: skip


def _d2t(info: GgufInfo, config: DrafterConfig) -> np.ndarray | None:
    """The target id of each draft id, checked; None where the file has no such table."""
    if "d2t" not in info.tensors:
        return None
    ids, d, v = read_tensor(info, "d2t"), config.draft_vocab_size, config.vocab_size
    if ids.dtype.kind != "i" or ids.min() < 0 or ids.max() >= v or len(np.unique(ids)) != len(ids):
        raise CheckpointError(f"{info.path}: d2t does not hold {d} different token ids below {v}; convert it again")
    return ids


def _from(about: dict[str, Any], name: str) -> str:
    _, _, source = str(about["provenance"].get(name, "")).partition("; ")
    return f" [{source}]" if source else ""


def lines(about: dict[str, Any]) -> list[str]:
    """The text `refspec inspect` prints, one fact per line, from the dictionary of `describe`."""
    w, t = about["weights"], about["tokenizer"]
    sizes = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in about["sizes"].items() if v is not None)
    kinds = ", ".join(f"{n} {kind}" for kind, n in w["tensors"].items())
    out = [
        f"{about['file']}: {about['kind']}, architecture {about['architecture']}"
        + (f", name {about['name']}" if about["name"] else ""),
        f"  size             {about['bytes'] / 1e6:.2f} MB, {about['parameters'] / 1e6:.2f} M parameters",
        f"  weights          mostly {w['mostly']} ({kinds} tensors)",
        f"  sizes            {sizes}",
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
        states = f"residual stream at {bounds}" if bounds else "undecided"
        out.append(f"  captured states  {states}{_from(about, 'capture_layers')}")
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
