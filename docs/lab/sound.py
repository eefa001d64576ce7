"""`python docs/lab sound`: of a folder of answers, those that rules find nothing wrong with.

A model that learns from its own sound answers gives more of them: rejection sampling of what is verifiable (STaR,
Zelikman et al. 2022; RFT, Yuan et al. 2023), with rules that need no judge and no reference:

- the answer ended by itself, and says something;
- no stretch of 12 tokens comes twice in it (`docs/lab/repetition.py`);
- every sum `a op b = c` in it is right, and every fenced block of Python parses (`docs/lab/answers.py`).

A document with an answer that breaks a rule is left out whole.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click
import numpy as np

from lab.answers import parses, sums
from lab.repetition import answers, read_packed, repeats
from refspec.cli.command import Command
from refspec.cli.group import output_option
from refspec.cli.train import folder
from refspec.errors import CheckpointError, UsageError
from refspec.train.tokenizer import BOS, TURN_END, load_tokenizer

SPLITS = ("train", "val")
RULES = ("cut", "empty", "repeats", "sums", "python")  # asked in this order; the first that is broken counts


def sound(source: Path, out: Path) -> dict[str, dict[str, int]]:
    """Write the sound documents of `source` (the format of `train data`) to `out`; {split: {kept, cut, ...}}, documents
    each.

    Raises UsageError (folders, nothing left), CheckpointError (tokenizer).
    """
    if out.resolve() == source.resolve():
        raise UsageError(f"--output {out} is --data itself; name another folder")
    tokenizer = load_tokenizer(source / "tokenizer.json")
    bos, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(TURN_END)
    if bos is None or end is None:
        raise CheckpointError(
            f"{source / 'tokenizer.json'}: has no {BOS} or {TURN_END}; make the folder with `refspec train data`"
        )
    made, arrays = {}, {}
    for split in SPLITS:
        tokens, mask = (np.asarray(part) for part in read_packed(source, split))
        again = repeats(tokens, mask)
        starts = np.flatnonzero(tokens == bos)
        found: Counter[str] = Counter()
        kept = []
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(tokens)], strict=True):
            wrong = next(
                (
                    w
                    for a, b in answers(mask[start:stop])
                    if (w := _wrong(tokenizer, tokens[start + a : start + b], again[start + a : start + b], end))
                ),
                None,
            )
            found[wrong or "kept"] += 1
            if wrong is None:
                kept.append(np.arange(start, stop))
        if not kept:
            raise UsageError(f"{source}: {split} has no sound answer; nothing was written")
        at = np.concatenate(kept)
        arrays[split] = tokens[at], mask[at]
        made[split] = {name: found[name] for name in ("kept", *RULES)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    for split, (tokens, mask) in arrays.items():
        np.save(out / f"{split}.tokens.npy", tokens)
        np.save(out / f"{split}.mask.npy", mask)
    counts = {
        s: {"records": made[s]["kept"], "tokens": len(t), "assistant": int(m.sum())} for s, (t, m) in arrays.items()
    }
    (out / "counts.json").write_text(json.dumps(counts, indent=1))
    return made


def _wrong(tokenizer, answer: np.ndarray, again: np.ndarray, end: int) -> str | None:
    """The first of RULES that an answer breaks, None for a sound one."""
    if answer[-1] != end:
        return "cut"
    if len(answer) == 1:
        return "empty"
    if again.any():
        return "repeats"
    text = tokenizer.decode(answer[:-1].tolist(), skip_special_tokens=True)
    if not all(sums(text)):
        return "sums"
    return "python" if parses(text) is False else None


@click.command("sound", cls=Command)
@click.option(
    "--data", type=folder, required=True, help="Folder of answers: made by `train regenerate`, or by `train data`."
)
@output_option("DIR", "Folder for the data set of those that are sound.", type=folder)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
def command(data: Path, out: Path, as_json: bool) -> None:
    """Keep the answers that rules find nothing wrong with: data for `train target`, in the same format.

    \b
        refspec train regenerate --data runs/data -m runs/target -o runs/own --tokens 2000000
        python docs/lab sound --data runs/own -o runs/sound
        refspec train target --init runs/target/hf --data runs/data --data runs/sound -o runs/better --lr-scale 0.3 ...

    \b
    A document is kept unless one of its answers
        cut      did not end by itself
        empty    says nothing
        repeats  has a stretch of 12 tokens twice
        sums     states a sum that is wrong
        python   has a fenced block of Python that does not parse
    """
    made = sound(data, out)
    if as_json:
        click.echo(json.dumps(made))
        return
    for split, found in made.items():
        left = ", ".join(f"{count} {name}" for name, count in found.items() if name != "kept")
        click.echo(f"{split}: {found['kept']} of {sum(found.values())} documents kept; left out: {left}")
