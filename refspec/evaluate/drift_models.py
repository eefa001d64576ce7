"""The models of a comparison: a target that captures for several drafters, and these, as reference or on llama.cpp.

A drafter is a GGUF or a checkpoint directory (safetensors, config.json).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refspec import named, native
from refspec.decoding.lookup import LookupDrafter
from refspec.errors import CheckpointError, UsageError
from refspec.evaluate.journal import fingerprint
from refspec.gguf import drafter_meta
from refspec.gguf.io import read_gguf_header
from refspec.gguf.recast import is_f32, recast
from refspec.llama import open_pair
from refspec.llama.pair_checks import drafter_config
from refspec.llama.target import LlamaTarget
from refspec.llama.tree_target import check_shares
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.tree import TreeShape


def load_pairs(
    model: str | None, paths: Sequence[str], *, n_ctx: int = 0, threads: int | None = None, gpu_layers: int = 0,
    strict: bool = False, anchors: Sequence[float] = (), growths: Sequence[float] = (), engine: str = "reference",
    lookup: bool = False, trees: Sequence[TreeShape] = (),
) -> tuple[LlamaTarget, dict[str, Any], dict[str, str]]:  # fmt: skip
    """The target, the drafters by name (the file's, or the path's where two are equal), and their files' fingerprints.

    Models are files or names; without a model, the embedded pair. `strict` runs the target in F32. `engine` is
    "reference", "llama", or "" for llama.cpp unless a directory or an experiment needs the reference. Each value of
    `anchors` and `growths` adds every drafter once more, with that experiment. Raises CheckpointError (a file),
    ShapeError (a drafter for another target), BackendError, UsageError.
    """
    native.check()
    pair = named.pair(model, None)
    model = str(pair.model)
    paths = [str(named.drafter(path, model)) for path in paths]
    if not paths and pair.drafter is not None:
        paths = [str(path) for path in (pair.drafter, *pair.others)]
    if not paths and not lookup:
        raise UsageError("this command measures drafters: name one or more with -d")
    directories = [path for path in paths if Path(path).is_dir()]
    engine = engine or ("reference" if directories or anchors or growths else "llama")
    if engine == "llama" and (directories or anchors or growths):
        what = f"--{'anchor' if anchors else 'grow'} changes what a drafter computes"
        if directories:
            what = f"{directories[0]} is a directory"
        raise UsageError(f"{what}, which llama.cpp does not run; use --engine reference, or convert it to a GGUF")
    files = dict(zip(names(paths), paths, strict=True))
    if engine == "llama":
        layers = {layer for path in paths for layer in open_pair.capture_layers(path)}
        read_drafters: dict[str, Any] = {}
    else:
        read_drafters = {name: read(path, model) for name, path in files.items()}
        layers = {layer for drafter in read_drafters.values() for layer in drafter.capture_layers}
        for name, drafter in list(read_drafters.items()):
            for bonus in sorted(set(anchors)):
                read_drafters[f"{name}+anchor{bonus:g}"] = drafter.varied(anchor=bonus)
            for factor in sorted(set(growths)):
                read_drafters[f"{name}+grow{factor:g}"] = drafter.varied(grow=factor)
    prints = {name: fingerprint(path) for name, path in {"target": model, **files}.items()}
    if strict and not is_f32(model):
        model = str(recast(model, "f32"))
    settings: dict[str, Any] = {
        "n_threads": threads, "n_threads_batch": threads, "n_gpu_layers": gpu_layers,
        "kv_type": "f32" if strict else "f16", "flash_attn": "off" if strict else "auto",
    }  # fmt: skip
    target = LlamaTarget(model, n_ctx=n_ctx, capture_layers=sorted(layers), pair_rows=strict, **settings)
    try:
        if trees:
            check_shares(target)  # it runs none here, but trees it cannot run are of no use
        if engine == "llama":
            for name, path in files.items():
                weights = str(recast(path, "f32")) if strict and not is_f32(path) else path
                read_drafters[name] = _on_llama(path, weights, model, target, trees, settings)
    except BaseException:
        target.close()
        raise
    if lookup:
        read_drafters["lookup"] = LookupDrafter()
    return target, read_drafters, prints


def _on_llama(
    path: str, weights: str, model: str, target: LlamaTarget, trees: Sequence[TreeShape], settings: dict[str, Any]
) -> Any:
    """The drafter on llama.cpp, one that grows trees if any are wanted; `weights` is its file or a recast of it."""
    if not trees or not open_pair.is_eagle3(path):
        return open_pair.make_drafter(weights, target, lookup=False, **settings)
    if drafter_meta.graph_reasons(drafter_config(read_gguf_header(path), in_graph=False)):
        # refspec's own kernels, which would run it, draft chains only; the reference grows trees of any drafter
        return read(path, model)
    broadest = max(trees, key=lambda shape: shape.top_k)
    return open_pair.make_drafter(weights, target, lookup=False, tree=broadest, **settings)


def read(path: str, model: str) -> Eagle3Drafter:
    """The drafter at `path` on the reference code, with what it leaves to the target taken from there."""
    from refspec.convert import read_checkpoint
    from refspec.convert.target_info import target_facts
    from refspec.gguf.io import read_drafter
    from refspec.llama.pair_checks import check_pair

    if Path(path).is_dir():
        config, weights, _, _ = read_checkpoint(path, model)
    else:
        config, weights = read_drafter(path)
        info, facts = read_gguf_header(model), target_facts(model)
        check_pair(read_gguf_header(path), config, info, facts.hidden_size, facts.vocab_size, facts.n_layer)
        for name in (n for n in drafter_meta.SHARED if n not in weights):
            weights[name] = facts.matrix(name).load()
    try:
        return Eagle3Drafter(config, weights, native)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def names(paths: Sequence[str]) -> list[str]:
    """Short names of files or directories that tell them apart."""
    stems = [Path(path).stem if not Path(path).is_dir() else Path(path).name for path in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{Path(path).parent.name}/{stem}" for path, stem in zip(paths, stems, strict=True)]
    if len(set(stems)) < len(stems):
        raise UsageError("two drafters have the same name; name each file once, or rename one")
    return stems
