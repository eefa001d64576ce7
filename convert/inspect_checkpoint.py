"""What a checkpoint directory is, in the dictionary `inspect.describe` makes of a GGUF: the same facts, the same text.

The importer decides, so what is shown here is what `refspec convert` would do. Where it refuses, because a flag can be
read in two ways, that flag is shown as undecided with the importer's reason and the override to give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refspec.convert.eagle3 import Opened, open_checkpoint
from refspec.convert.files import read_tensors
from refspec.convert.flags import default_layers
from refspec.convert.inspect_words import NO_TEMPLATE, coverage, drafter_sizes, runs_in, switches, weights
from refspec.convert.other_models import refuse_adapter
from refspec.convert.report import Report
from refspec.convert.safetensors_io import Config, Stored, StoredTensor, read_json
from refspec.convert.target import ARCHITECTURES
from refspec.convert.tokenizer import chat_template
from refspec.errors import CheckpointError, ShapeError
from refspec.gguf import drafter_meta as meta
from refspec.gguf.header import FilePath
from refspec.reference.config import DrafterConfig

# override -> values to go on with while it is undecided; the first the importer takes
_TRIALS: dict[str, tuple[Any, ...]] = {
    "feature_norm": ("per_state", "concat", "none"), "feedback": ("pre_norm",), "residual": ("raw",),
    "head_norm": (True,), "layer_ids": ((2, 3, 4), (2,), (2, 3), (2, 3, 4, 5), (2, 3, 4, 5, 6)),
    "d2t": ("offsets", "absolute"), "rope_theta": (10000.0,),
}  # fmt: skip
_FLAG = {"layer_ids": "capture_layers", "rope_theta": "rope"}


def describe_directory(path: FilePath, target: FilePath | None = None) -> dict[str, Any]:
    """Everything `refspec inspect` prints of a checkpoint directory; `CheckpointError` if it is not one.

    `target` (GGUF or directory) supplies what a drafter leaves to it: the default captured layers, missing tensors.
    """
    folder = Path(path)
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no checkpoint folder, it has no config.json; give a GGUF or a model's folder")
    config, stored = read_json(folder / "config.json"), read_tensors(folder)
    drafter = any(name.removeprefix("model.") == "fc.weight" for name in stored)
    architectures = config.get("architectures")
    common: dict[str, Any] = {
        "file": str(folder),
        "kind": "drafter" if drafter else "target",
        "architecture": str(architectures[0]) if isinstance(architectures, list) and architectures else None,
        "name": None,
        "bytes": sum(file.stat().st_size for file in {t.path for t in stored.values()}),
        "parameters": sum(_count(t) for t in stored.values() if t.dtype not in ("I64", "I32", "BOOL")),
        "weights": weights((t.dtype, t.shape) for t in stored.values()),
        "tokenizer": _tokenizer(folder),
    }
    return common | (_drafter(folder, target, stored) if drafter else _target(config, stored, common["tokenizer"]))


def _count(tensor: StoredTensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _tokenizer(folder: Path) -> dict[str, Any]:
    none = dict.fromkeys(("model", "pre", "bos", "eos", "eot", "add_bos")) | {"tokens": 0, "chat_template": False}
    if not (folder / "tokenizer.json").is_file():
        return none
    tokenizer = read_json(folder / "tokenizer.json")
    model = tokenizer.get("model") if isinstance(tokenizer.get("model"), dict) else {}
    vocab = model.get("vocab") if isinstance(model, dict) else {}
    return none | {
        "model": f"tokenizer.json, {model.get('type', 'BPE') if isinstance(model, dict) else '?'}",
        "tokens": len(vocab) if isinstance(vocab, (dict, list)) else 0,
        "chat_template": chat_template(folder) is not None,
    }  # fmt: skip


def _target(config: Config, stored: Stored, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else config
    hidden, heads, n = (inner.get(k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    width = hidden // heads if type(hidden) is int and type(heads) is int and heads else None
    known = (config.get("architectures") or ["?"])[0] in ARCHITECTURES
    has_head = any(name.endswith("lm_head.weight") for name in stored)
    runs = ["refspec and stock llama.cpp, after refspec convert"] if known else []
    warnings = [] if known else ["refspec converts Llama only; use llama.cpp's convert_hf_to_gguf.py for this one"]
    if not tokenizer["chat_template"]:
        warnings.append(NO_TEMPLATE)
    return {
        "sizes": {
            "layers": n, "hidden": hidden, "heads": heads, "kv_heads": inner.get("num_key_value_heads", heads),
            "head_dim": inner.get("head_dim") or width,
            "feed_forward": inner.get("intermediate_size"), "vocabulary": inner.get("vocab_size"),
            "context": inner.get("max_position_embeddings"),
        },
        "tied_head": bool(config.get("tie_word_embeddings")) or not has_head,
        "default_capture_layers": list(default_layers(n)) or None,
        "hidden_states": "whatever runs it",
        "runs_in": [*runs, "vLLM, if it knows the architecture"],
        "warnings": warnings,
    }  # fmt: skip


def _open(folder: Path, target: FilePath | None) -> tuple[Opened, dict[str, str]]:
    """The checkpoint as the importer reads it, and what it left undecided: override -> its reason."""
    undecided: dict[str, str] = {}
    trial: dict[str, Any] = {}
    left: dict[str, list[Any]] = {name: list(values) for name, values in _TRIALS.items()}
    refused: CheckpointError | ShapeError | None = None  # what no override decides
    while True:
        try:
            return open_checkpoint(folder, target, trial), undecided
        except (CheckpointError, ShapeError) as error:
            named = [n for n in re.findall(r"--([a-z]\w*(?:-\w+)*)", str(error)) if n.replace("-", "_") in left]
            open_ones = [n for n in trial if left[n]]
            name = named[0].replace("-", "_") if named else next(iter(open_ones), None)
            refused = refused if named or refused else error
            if name is None or not left[name]:
                raise refused or error from None
            undecided.setdefault(name, " ".join(str(error).split()).removeprefix(f"{folder / 'config.json'}: "))
            trial[name] = left[name].pop(0)


def _drafter(folder: Path, target: FilePath | None, stored: Stored) -> dict[str, Any]:
    opened, undecided = _open(folder, target)
    config, resolved = opened.config, opened.resolved
    sources = {name: fact.source for name, fact in resolved.items()}
    flags = switches(config, lambda name: sources.get(name, "config.json"))
    for name, why in undecided.items():
        if name in flags:
            flags[name] = {"value": "undecided", "meaning": why, "source": f"give --{name.replace('_', '-')}"}
    report = Report(folder, "", resolved=resolved)
    told = {key.removeprefix("refspec.provenance."): said for key, said in report.provenance().items()}
    reasons = meta.stock_reasons(config)
    unsure = {"feature_norm", "feedback", "head_norm"} & undecided.keys()
    return {
        "sizes": drafter_sizes(config),
        "capture_layers": [] if "layer_ids" in undecided else list(config.capture_layers),
        "draft_vocabulary": coverage(config, opened.tensors.get("d2t")),
        "flags": flags,
        "provenance": {n: said for n, said in told.items() if n not in {_FLAG.get(u, u) for u in undecided}},
        "taken_from_target": [n for n in meta.SHARED if n not in opened.tensors],
        "runs_in": runs_in(config, "refspec convert", undecided=bool(unsure)),
        "not_stock_because": [] if unsure else reasons,
        "undecided": undecided,
        "warnings": _warnings(config, stored, opened, undecided),
    }  # fmt: skip


def _warnings(config: DrafterConfig, stored: Stored, opened: Opened, undecided: Mapping[str, str]) -> list[str]:
    out = [note for note in opened.notes if not note.startswith("no target given")]
    if "feature_norm" in undecided:
        norms = sorted(n for n in stored if n.removeprefix("model.").startswith(("fc_norm", "input_norm")))
        if norms:
            out.append(f"{', '.join(norms)}: present, but no flag applies them; code that goes by the flags never does")
    if not config.uses_output_norm and "output_norm" in opened.tensors:
        out.append("norm.weight is present and never applied: head_norm = no and pre-norm feedback")
    for name in ("layer_ids", "rope_theta", "d2t"):
        if name in undecided:
            out.append(f"undecided: {undecided[name]}")
    trainer = opened.resolved["layout"].value
    if config.feedback.value == "post_norm" and trainer != "speculators":
        out.append("llama.cpp's own converter and SpecForge before its change #879 do not feed back the normed state")
    return out
