"""Sound files of every kind, each a function of a random generator: (kind, name of the main file -> bytes)."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "engine"), str(ROOT / "formats")]
import formats_toys  # noqa: E402
import tiny  # noqa: E402

ORACLES = ROOT / "vectors" / "oracles"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
Parts = tuple[str, dict[str, Any], dict[str, np.ndarray]]  # architecture, metadata, tensors


def target_parts(arch: str) -> Parts:
    """A tiny target with a chat template; the architectures take other ways through llama.cpp."""
    return arch, *_with_template(*tiny.target_parts(arch))


def _with_template(meta: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    return meta | {"tokenizer.chat_template": TEMPLATE, "general.name": "tiny"}, tensors


def gemma3_parts() -> Parts:
    """Two norms more, a window of attention, and a tied head."""
    meta, tensors = tiny.target_parts("qwen3")
    tensors = {name: a for name, a in tensors.items() if name != "output.weight"}
    for i in range(tiny.N_LAYER):
        for name in ("post_attention_norm", "post_ffw_norm"):
            tensors[f"blk.{i}.{name}.weight"] = tensors[f"blk.{i}.attn_norm.weight"]
    meta = {key.replace("qwen3.", "gemma3."): value for key, value in meta.items()}
    more = {"gemma3.attention.sliding_window": 64, "gemma3.attention.key_length": tiny.HEAD}
    return "gemma3", *_with_template(meta | more | {"gemma3.attention.value_length": tiny.HEAD}, tensors)


TARGETS: dict[str, Callable[[], Parts]] = {
    **{arch: (lambda arch=arch: target_parts(arch)) for arch in ("llama", "qwen2", "qwen3", "lfm2")},
    "gemma3": gemma3_parts,
}
DRAFTERS: dict[str, Callable[[], Parts]] = {
    "plain": tiny.drafter_parts,
    "per_state": lambda: tiny.drafter_parts(feature_norm="per_state", feedback="post_norm"),
    "concat": lambda: tiny.drafter_parts(feature_norm="concat", residual="normed"),
    "shared": lambda: tiny.drafter_parts(shared=True, width=tiny.HT),
}


def checkpoint(name: str, folder: Path) -> None:
    """A drafter's checkpoint of one trainer (an oracle)."""
    shutil.copytree(ORACLES / name / "checkpoint", folder)


def hf_target(folder: Path) -> None:
    """A Llama directory with a tokenizer."""
    config = formats_toys.target_config(600, tie_word_embeddings=False)
    formats_toys.write_target_directory(folder, config, formats_toys.target_tensors(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": TEMPLATE}))


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    **{path.name: (lambda folder, name=path.name: checkpoint(name, folder)) for path in sorted(ORACLES.iterdir())
       if path.is_dir()},
    "hf_target": hf_target,
}  # fmt: skip
