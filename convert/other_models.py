"""What a directory is that somebody took for an EAGLE-3 drafter, and what runs it.

Only what the files show beyond doubt; anything else is left to the checks of `config_keys.py` and `names.py`.
"""

from __future__ import annotations

from pathlib import Path

from refspec.convert.safetensors_io import Config, Stored
from refspec.errors import CheckpointError
from refspec.gguf.header import LFS_POINTER, MAGIC, lfs_pointer

# In the name of an architecture -> what it is; the first that fits. `Eagle3` is not among them.
_METHODS = {
    "medusa": "Medusa heads", "dflash": "a DFlash drafter", "peagle": "a P-EAGLE drafter",
    "paralleleagle": "a P-EAGLE drafter", "mtp": "MTP layers", "nextn": "MTP layers", "hydra": "Hydra heads",
}  # fmt: skip


def refuse_adapter(directory: Path) -> None:
    """`CheckpointError` for a GGUF, which needs no conversion, and for a LoRA adapter, which has no config.json."""
    if directory.is_file():
        with directory.open("rb") as file:
            head = file.read(len(LFS_POINTER))
        if head.startswith(LFS_POINTER):
            raise CheckpointError(lfs_pointer(directory))
        what = "a GGUF already; give it with -d or -m" if head.startswith(MAGIC) else "a file"
        raise CheckpointError(f"{directory}: {what}, expected a checkpoint folder with its config.json")
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: a LoRA adapter (adapter_config.json), no drafter; merge it into its model")


def refuse_by_config(config: Config, where: str) -> None:
    """`CheckpointError` for another kind of drafter that its config.json names."""
    kind = config.get("speculators_model_type")
    if kind not in (None, "eagle3"):
        raise CheckpointError(f"{where}: speculators_model_type = {str(kind)[:40]!r}, not eagle3; vLLM runs the others")
    architecture = _architecture(config)
    bare = architecture.lower().replace("_", "").replace("-", "")
    for name, method in _METHODS.items():
        if name in bare and "eagle3" not in bare:
            raise CheckpointError(f"{where}: {method} ({architecture}), not an EAGLE-3 drafter; vLLM runs them")
    if config.get("model_type") == "medusa" or any(key.startswith("medusa_") for key in config):
        raise CheckpointError(f"{where}: Medusa heads, not an EAGLE-3 drafter; vLLM runs them")
    if config.get("model_type") == "mlp_speculator":
        raise CheckpointError(f"{where}: an MLP speculator, not an EAGLE-3 drafter; vLLM runs it")


def refuse_by_tensors(config: Config, stored: Stored, where: str) -> None:
    """`CheckpointError` for another kind of drafter, or a whole model, that its tensors show."""
    if any("eh_proj" in name for name in stored):
        raise CheckpointError(
            f"{where}: MTP layers (tensor eh_proj), not an EAGLE-3 drafter; llama.cpp and vLLM run them in their model"
        )
    if _is_first_eagle(stored):
        raise CheckpointError(f"{where}: an EAGLE-1 or EAGLE-2 drafter, not EAGLE-3; SafeAILab's EAGLE and vLLM run it")
    layers = {name.split(".")[2] for name in stored if name.startswith("model.layers.") and name.count(".") > 2}
    if len(layers) > 1 and not any(name.removeprefix("model.") == "fc.weight" for name in stored):
        architecture = _architecture(config)
        raise CheckpointError(
            f"{where}: a whole model ({architecture}, {len(layers)} layers), not a drafter; llama.cpp's "
            "convert_hf_to_gguf.py makes a GGUF of it, for -m"
        )


def _architecture(config: Config) -> str:
    names = config.get("architectures")
    return str(names[0])[:40] if isinstance(names, list) and names else "?"


def _is_first_eagle(stored: Stored) -> bool:
    """EAGLE-1 and EAGLE-2: fc joins embedding and state to H values, [H, 2H], and the block is a plain Llama layer."""
    bare = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    fc, q = bare.get("fc.weight"), bare.get("layers.0.self_attn.q_proj.weight")
    if fc is None or q is None or len(fc.shape) != 2 or len(q.shape) != 2:
        return False
    return fc.shape[1] == 2 * fc.shape[0] and q.shape[1] == fc.shape[0]
