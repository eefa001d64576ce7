"""A drafter GGUF -> a checkpoint directory for trainers and other engines: speculators, SpecForge, SafeAILab (eagle).

The inverse of `eagle3.py`: offsets in d2t, half-split RoPE rows, the trainer's names and flags. A switch that a layout
has no flag for is an error; nothing is dropped. What each layout can express: `export_config.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refspec.convert import checkpoint_out as to
from refspec.convert.export_config import CONFIGS, NOT_SAID, with_whole_groups
from refspec.convert.names import BLOCK, TOP
from refspec.convert.rope_out import scaling_in
from refspec.errors import CheckpointError, UsageError, reads_file
from refspec.gguf import drafter_meta as meta
from refspec.gguf.header import FilePath
from refspec.gguf.io import GgufInfo, read_gguf_header, read_tensor, rope_divisors
from refspec.reference.config import BIASED, DrafterConfig, Feedback, weight_shapes

LAYOUTS = ("speculators", "specforge", "eagle")
DTYPES = ("auto", *to.FLOATS)
_PREFIX = {"speculators": "layers.0.", "specforge": "midlayer.", "eagle": "midlayer."}


@dataclass
class Exported:
    """What was written; `lines()` is what the command line prints."""

    path: Path
    layout: str
    dtype: str
    tensors: int
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Human-readable summary, one fact per line."""
        head = f"{self.path}: {self.layout} checkpoint, {self.tensors} tensors, floats as {self.dtype}"
        return [head, *(f"  note: {note}" for note in self.notes)]


def split_rows(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder q or k rows [heads*hd, ...] from interleaved pairs (2i, 2i + 1) to half-split pairs (i, i + hd/2)."""
    grouped = weight.reshape(-1, head_dim // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(weight.shape)


@reads_file
def export_drafter(
    path: FilePath, out: FilePath, layout: str, *, dtype: str = "auto", verifier: str | None = None
) -> Exported:
    """Write the drafter GGUF at `path` as a checkpoint directory `out`; `dtype` auto is the smallest exact one.

    `verifier` names the target (for speculators' config). Raises `CheckpointError` for a file or a switch the layout
    cannot express, `UsageError` for an unknown layout or dtype, or a directory that holds a checkpoint already.
    """
    if layout not in LAYOUTS or dtype not in DTYPES:
        wrong, choices = (layout, LAYOUTS) if layout not in LAYOUTS else (dtype, DTYPES)
        raise UsageError(f"{wrong!r} is unknown; choose one of {', '.join(choices)}")
    info = read_gguf_header(path)
    config = meta.from_metadata(info)
    if layout == "speculators":
        config = with_whole_groups(config, _zero_biases(info))
    entries = _entries(info, config, layout)
    divisors = rope_divisors(info, meta.STOCK_ARCH, config.head_dim)
    scaling = scaling_in(
        info, divisors, config.rope_theta, config.head_dim, config.context_length or 2048, config.rope_attention_factor
    )
    for said, switch, problem in NOT_SAID[layout](config, scaling):
        if said:
            raise CheckpointError(f"{info.path}: {switch}, which the {layout} layout cannot express: {problem}")
    directory = to.new_directory(out)
    usual = "F16" if layout == "eagle" else "BF16"  # what these trainers store
    kind = to.exact_dtype(entries, usual) if dtype == "auto" else dtype
    write = to.write_torch if layout == "eagle" else to.write_safetensors
    write(directory / ("pytorch_model.bin" if layout == "eagle" else "model.safetensors"), entries, kind)
    # Last: a directory without config.json is no checkpoint, should this be interrupted.
    to.write_json(directory / "config.json", CONFIGS[layout](config, scaling, kind, verifier, specials(info)))
    return Exported(directory, layout, kind, len(entries), _notes(info, config, layout, verifier))


def _entries(info: GgufInfo, config: DrafterConfig, layout: str) -> list[to.Entry]:
    """Every tensor under the layout's name, loaded when it is written."""
    required, optional = weight_shapes(config)
    shapes = required | optional
    spelled = {ours: theirs for theirs, ours in TOP.items()}
    spelled |= {ours: f"{_PREFIX[layout]}{theirs}.weight" for theirs, ours in BLOCK.items()}
    spelled |= {f"{ours}.bias": spelled[ours].removesuffix("weight") + "bias" for ours in BIASED}
    entries = []
    for tensor in info.tensors:
        ours = meta.weights_name(tensor)
        if ours not in shapes:
            raise CheckpointError(f"{info.path}: tensor {tensor!r} is not part of this drafter; convert it again")
        if info.tensors[tensor].shape != shapes[ours]:
            raise CheckpointError(
                f"{info.path}: tensor {tensor!r} is {list(info.tensors[tensor].shape)}, the metadata says "
                f"{list(shapes[ours])}; convert the drafter again"
            )
        if ours not in ("d2t", "rope_freqs"):
            load = loader(info, tensor, config.head_dim, rotated=ours in meta.ROTATED)
            entries.append(to.Entry(spelled[ours], shapes[ours], "float", load))
    for ours, values in meta.fc_norm_values(info, config).items():
        entries.append(_held(f"{ours}.weight", np.array(values, np.float32)))
    for ours in config.biases:  # all or none of a group: the others are zero
        if meta.TENSORS[name := f"{ours}.bias"] not in info.tensors:
            entries.append(_held(spelled[name], np.zeros(shapes[name], np.float32)))
    found = {e.name for e in entries}
    for ours in required.keys() - {"d2t", *meta.SHARED} - {n for n in required if n.startswith("fc_norm.")}:
        if spelled[ours] not in found:
            raise CheckpointError(f"{info.path}: tensor {meta.TENSORS[ours]!r} is missing; convert the drafter again")
    return sorted(entries, key=lambda e: e.name) + _vocabulary(info, config, layout)


def _held(name: str, array: np.ndarray) -> to.Entry:
    return to.Entry(name, array.shape, "float", lambda: array)


def _zero_biases(info: GgufInfo) -> list[str]:
    """The matrices whose bias the checkpoint had, all zero, so that the conversion left it out."""
    names = info.optional("refspec.zero_biases", list, [])
    if wrong := [name for name in names if name not in BIASED]:
        raise CheckpointError(f"{info.path}: refspec.zero_biases names {str(wrong[0])[:40]!r}; convert it again")
    return list(names)


def loader(info: GgufInfo, tensor: str, head_dim: int, *, rotated: bool) -> Callable[[], np.ndarray]:
    """A function that reads the tensor, with RoPE's rows in half-split order where they are `rotated`."""
    if rotated:
        return lambda: split_rows(read_tensor(info, tensor), head_dim)
    return lambda: read_tensor(info, tensor)


def _vocabulary(info: GgufInfo, config: DrafterConfig, layout: str) -> list[to.Entry]:
    """d2t as offsets and t2d as membership; SpecForge writes them for a full vocabulary too."""
    d, v = config.draft_vocab_size, config.vocab_size
    if "d2t" in info.tensors:
        ids = read_tensor(info, "d2t")
    elif d != v:
        raise CheckpointError(f"{info.path}: tensor 'd2t' is missing; convert the drafter again")
    elif layout != "specforge":
        return []
    else:
        ids = np.arange(v)
    if ids.min() < 0 or ids.max() >= v or (np.diff(ids) <= 0).any():
        raise CheckpointError(f"{info.path}: d2t must hold ascending ids below {v}; no layout stores another order")
    member = np.zeros(v, bool)
    member[ids] = True
    offsets = ids - np.arange(d)
    return [to.Entry("d2t", (d,), "I64", lambda: offsets), to.Entry("t2d", (v,), "BOOL", lambda: member)]


def specials(info: GgufInfo) -> dict[str, int]:
    """bos, eos and pad ids where the GGUF has a tokenizer."""
    named = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {k: info.metadata.get(f"tokenizer.ggml.{n}_token_id") for k, n in named.items()}
    return {k: i for k, i in found.items() if type(i) is int}


def rounded(info: GgufInfo) -> list[str]:
    """A note on quantized weights, where there are any."""
    quantized = sorted({t.type for t in info.tensors.values()} - {"F32", "F16", "BF16", "I64"})
    said = f"the GGUF holds {', '.join(quantized)} weights: the checkpoint has their rounded values"
    return [said] if quantized else []


def _notes(info: GgufInfo, config: DrafterConfig, layout: str, verifier: str | None) -> list[str]:
    notes = []
    for name in meta.SHARED:
        if meta.TENSORS[name] not in info.tensors:
            notes.append(f"{name} is not in the GGUF, so not in the checkpoint: the engine takes the target's")
    notes += rounded(info)
    layers = ", ".join(map(str, config.capture_layers))
    if layout == "eagle":
        notes.append(f"SafeAILab always captures boundaries 2, n/2, n-3; this drafter was trained on {layers}")
    if layout == "specforge":
        notes.append(
            f"captured layers {layers} are written twice: as boundaries for vLLM, and one less in eagle_config, where "
            "SGLang and SpecForge add one"
        )
        if config.feedback is Feedback.POST_NORM:
            notes.append("norm_output = true means post-norm feedback from SpecForge's change #879 on, pre-norm before")
        if not config.head_norm:
            notes.append("norm_output = false means no norm before lm_head up to SpecForge's change #879 only")
    if layout == "eagle" and config.rope_theta != 10000:
        notes.append("SafeAILab's inference reads rope_theta, its training class always uses 10000")
    if layout == "speculators" and verifier is None:
        notes.append("no --verifier: the speculators library and a bare vllm serve want the target's name")
    if layout == "speculators" and config.target_hidden_size != config.hidden_size:
        notes.append("the speculators trainer ignores target_hidden_size; vLLM reads it")
    return notes
