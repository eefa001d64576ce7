"""The tensors of a checkpoint directory, whatever files hold them: safetensors or `.bin`, whole or in shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refspec.convert.safetensors_io import StoredTensor, read_json, read_safetensors
from refspec.convert.torch_bin import read_torch_bin
from refspec.errors import CheckpointError
from refspec.gguf.header import FilePath

Reader = Callable[[Path], dict[str, StoredTensor]]
# In order of preference: where both kinds exist, safetensors is read.
KINDS: list[tuple[str, Reader]] = [("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch_bin)]


def read_tensors(directory: FilePath) -> dict[str, StoredTensor]:
    """Every tensor by name, not yet loaded: one file, or the shards its index names."""
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: is not a directory; give the checkpoint directory with its config.json")
    for name, read in KINDS:
        if (directory / name).exists():
            return read(directory / name)
        if (directory / f"{name}.index.json").exists():
            return _shards(directory / f"{name}.index.json", read)
    raise CheckpointError(f"{directory / KINDS[0][0]}: no such file, nor {KINDS[1][0]}, nor an index of shards")


def _shards(index: Path, read: Reader) -> dict[str, StoredTensor]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) and Path(v).name == v for v in where.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names in this directory")
    shards = {name: read(index.parent / name) for name in sorted(set(where.values()))}
    for tensor, shard in where.items():
        if tensor not in shards[shard]:
            raise CheckpointError(f"{index.parent / shard}: tensor {tensor!r}, listed in {index.name}, is missing")
    for shard, held in shards.items():
        if unlisted := sorted(held.keys() - where.keys()):
            raise CheckpointError(f"{index.parent / shard}: tensor {unlisted[0]!r} is not listed in {index.name}")
    return {tensor: shards[shard][tensor] for tensor, shard in where.items()}
