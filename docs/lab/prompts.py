"""`python docs/lab prompts`: the prompts whose answers the SmolLM2 drafter learned from.

The first user turn of conversations in a corpus, at most so many of each source as MOST says, each prompt once, with
refspec's built-in prompts among them, in a seeded order. Sources of templated text are kept few: they are easy to
draft, and teach little else.
"""

from __future__ import annotations

import json
import lzma
import random
from collections import defaultdict
from pathlib import Path

import click

from refspec.cli.command import Command, note
from refspec.evaluate.prompts import built_in

MOST = {
    "gsm8k_train": 5982, "oasst_octopack": 560, "oasst_trees": 166, "py_stdlib": 1800, "py_sympy": 1200,
    "py_scipy": 900, "py_numpy": 600, "py_networkx": 600, "mbpp_train": 309, "flan_cot_strategyqa": 1000,
    "flan_cot_creak": 500, "flan_cot_ecqa": 500, "flan_cot_aqua": 1200, "classic_books": 600, "18f_blog": 800,
    "taskmaster4": 300, "chatterbot_corpus": 619, "african_storybook": 295, "mawps": 500, "synth_math": 300,
    "tldr": 400, "peps": 800, "rust_book": 497, "t0_cosmos_qa": 200, "flan_cot_qasc": 200, "py_mpmath": 171,
    "py_jinja2": 130, "py_click": 107, "py_flask": 98, "py_parso": 56,
}  # fmt: skip
OWN = 2000  # built-in prompts


@click.command(cls=Command)
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSONL to write.")
@click.option("--seed", default=7, show_default=True, help="Of the choice and of the order.")
def command(corpus: Path, output: Path, seed: int) -> None:
    """Prompts of CORPUS (.jsonl.xz with `messages` and `source`) as `refspec train drafter --prompts` reads them."""
    found: dict[str, dict[str, None]] = defaultdict(dict)  # a dict keeps the order of the file
    with lzma.open(corpus, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found[row["source"]][row["messages"][0]["content"]] = None
    rng = random.Random(seed)
    chosen = [{"source": "refspec", "prompt": text} for text in dict.fromkeys(built_in(OWN))]
    for source, most in MOST.items():
        texts = list(found[source])
        chosen += [{"source": source, "prompt": text} for text in rng.sample(texts, min(most, len(texts)))]
    rng.shuffle(chosen)
    output.write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
    note(f"{output}: {len(chosen)} prompts of {len(MOST) + 1} sources")
