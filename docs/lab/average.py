"""`refspec train average`: the weights of a training, and of what it began from, in between (WiSE-FT, Wortsman et al.
2022).

A short training for one purpose takes something from everything else, and small batches leave noise in the weights. The
mean of before and after keeps most of the purpose: the noise in it counts half, its loss a quarter. Only for weights of
which one was trained from the other (`train target --init`), or both from a third, not long ago: runs that parted early
average to nothing.
"""

from __future__ import annotations

from pathlib import Path

from refspec.convert import convert_target
from refspec.errors import CheckpointError, UsageError
from refspec.train.start import WEIGHTS, read_weights
from refspec.train.target import hf_directory, hf_target_config
from refspec.train.tokenizer import load_tokenizer

COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def average(first: Path, second: Path, out: Path, *, share: float = 0.5, outtype: str = "f16") -> None:
    """Write (1 - share) * first + share * second to `out/hf` and `out/target.gguf`; both are run folders or Hugging
    Face directories.

    Raises CheckpointError (files missing, or of models that differ), UsageError (share, out).
    """
    from safetensors.torch import save_file

    if not 0 <= share <= 1:
        raise UsageError(f"--share {share} is outside 0..1")
    folders = [hf_directory(run) for run in (first, second)]
    if out.resolve() in [p.resolve() for p in (first, second, *folders)]:
        raise UsageError(f"--out {out} is one of the two; name another folder")
    states = []
    for folder in folders:
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder / WEIGHTS}: no such file; name a run folder of `train target`, or a Hugging Face directory"
            )
        states.append(read_weights(folder / WEIGHTS))
    if hf_target_config(folders[0] / "config.json") != hf_target_config(folders[1] / "config.json"):
        raise CheckpointError(
            f"{folders[1] / 'config.json'}: not the sizes of {folders[0]}; only weights of one model can be averaged"
        )
    if (
        load_tokenizer(folders[0] / "tokenizer.json").get_vocab()
        != load_tokenizer(folders[1] / "tokenizer.json").get_vocab()
    ):
        raise CheckpointError(
            f"{folders[1] / 'tokenizer.json'}: not that of {folders[0]}; only weights of one model can be averaged"
        )
    shapes = [{name: tuple(w.shape) for name, w in state.items()} for state in states]
    for name in sorted({*shapes[0], *shapes[1]}):
        if shapes[0].get(name) != shapes[1].get(name):
            raise CheckpointError(
                f"{folders[1] / WEIGHTS}: {name} is not as in {folders[0]}; only weights of one model can be averaged"
            )
    made = {
        name: ((1 - share) * w.float() + share * states[1][name].float()).contiguous() for name, w in states[0].items()
    }
    hf = out / "hf"
    hf.mkdir(parents=True, exist_ok=True)
    save_file(made, str(hf / WEIGHTS), metadata={"format": "pt"})
    for name in COPIED:
        if (folders[0] / name).is_file():
            (hf / name).write_bytes((folders[0] / name).read_bytes())
    convert_target(hf, out / "target.gguf", outtype)
