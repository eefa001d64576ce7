"""`refspec acceptance`: tau and acceptance by position of several drafters over the same outputs of the target."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from refspec.cli.command import DRAFTING, SAMPLING, SPECIALISTS, option
from refspec.cli.group import draft_max_option, main, output_option, tokens_option
from refspec.cli.measure import json_option, prompt_options
from refspec.cli.pairs import EXPERIMENTS, about, pair_options, strictly, whole_numbers
from refspec.errors import UsageError
from refspec.evaluate.perturb import PERTURBATIONS

KIND = "refspec-acceptance-run-1"


@main.command()
@pair_options
@prompt_options
@option("--count", type=click.IntRange(1), help="At most so many prompts of each family; all without it.")
@option("--turns", type=click.IntRange(1), help="At most so many turns of a conversation; all without it.")
@tokens_option(128, "At most so many tokens per answer.")
@output_option("JSONL", "Keep finished prompts there; the same call goes on after a kill.", required=False)
@json_option
@draft_max_option(
    "Guesses per step, one number or several, trained for or not.", default="5", show_default=True, metavar="K[,K...]"
)
@option(
    "--tree", "trees", multiple=True, metavar="N[:TOPK[:DEPTH]]", section=DRAFTING,
    help="Measure draft trees of N nodes too (TOPK after each, 4; DEPTH on a path, 8), beside the chain of N guesses, "
    "which checks as many tokens. May be repeated.",
)  # fmt: skip
@option("--lookup", is_flag=True, section=DRAFTING, help="Measure prompt lookup too.")
@option("--temp", type=float, default=0.0, show_default=True, section=SAMPLING, help="Temperature of the target.")
@option(
    "--seed", type=int, default=0, show_default=True, section=SAMPLING,
    help="Seed of the first prompt, the next ones count up; and of the bootstrap.",
)  # fmt: skip
@option("--baseline", metavar="NAME", section=SPECIALISTS, help="Drafter the ratios are to; the last one without it.")
@option(
    "--perturb", "perturbations", multiple=True, type=click.Choice([*PERTURBATIONS, "all"]), metavar="NAME",
    section=SPECIALISTS,
    help="Change the chat template around each prompt, see below; may be repeated, `all` is every one.",
)  # fmt: skip
@option(
    "--context", metavar="N[,N...]", section=SPECIALISTS,
    help="Pad first turns to N tokens with a document made of the other prompts; only prompts that fit into the "
    "smallest N.",
)  # fmt: skip
@option(
    "--engine", type=click.Choice(["llama", "reference"]), section=SPECIALISTS,
    help="Who runs the drafters; llama.cpp where it can.",
)  # fmt: skip
def acceptance(as_json: bool, **o: Any) -> None:
    """Count the guesses kept of several drafters.

    \b
        refspec acceptance -m target.gguf -d a.gguf -d b.gguf --draft-max 3,5

    The target decides its output once; the drafters are led over it, so ratios between them are paired. Later turns of
    a conversation follow the target's own answers. Nothing is timed.

    With --tree the table has a block for each shape: tau of the drafter's trees, of its chains of as many guesses, and
    `gain`, their ratio, paired. EAGLE-3 drafters grow trees, by llama.cpp or, where its graph does not compute them,
    the reference code; others are measured as chains only.

    \b
    Perturbations of the template:
    """
    from refspec.evaluate import acceptance_report

    measured = run(strictly(o))
    click.echo(json.dumps(measured) if as_json else "\n".join(acceptance_report.table(measured)))


acceptance.help = (acceptance.help or "").rstrip()
acceptance.help += "".join(f"\n      {name:<15} {how.about}" for name, how in PERTURBATIONS.items())


def run(o: dict[str, Any]) -> dict[str, Any]:
    """Measure what the options say, or go on measuring it; the record of `acceptance_report`."""
    from refspec.evaluate import acceptance as measuring
    from refspec.evaluate import acceptance_report
    from refspec.evaluate.drift_models import load_pairs
    from refspec.evaluate.journal import Journal
    from refspec.evaluate.prompts import read
    from refspec.reference.sampling import Sampler
    from refspec.reference.tree import TreeShape
    from refspec.session import Session

    lengths, buckets = whole_numbers(o["draft_max"], "--draft-max"), whole_numbers(o["context"], "--context")
    sampler, trees = Sampler(temperature=o["temp"]), list(dict.fromkeys(TreeShape.parse(text) for text in o["trees"]))
    prompts = measuring.first_of_each(read(o["prompts"], o["families"]), o["count"])
    given = o["perturbations"]
    wanted = list(PERTURBATIONS) if "all" in given else list(dict.fromkeys(given)) or ["none"]
    target, drafters, files = load_pairs(
        o["model"], o["drafters"], n_ctx=o["n_ctx"], threads=o["threads"], gpu_layers=o["gpu_layers"],
        strict=o["strict"], anchors=o["anchors"], growths=o["growths"], engine=o["engine"] or "",
        lookup=o["lookup"], trees=trees,
    )  # fmt: skip
    with ExitStack() as stack:
        session = stack.enter_context(Session(target, name=str(target.path)))
        for drafter in drafters.values():
            stack.callback(drafter.close)
        as_they_are = [name for name, d in drafters.items() if not any(getattr(d, key, 0) for key in EXPERIMENTS)]
        baseline = o["baseline"] or as_they_are[-1]
        if baseline not in drafters:
            raise UsageError(f"--baseline {baseline}: no drafter of that name; there are {', '.join(drafters)}")
        described = about(drafters)
        if trees:
            described = {name: what | {"trees": measuring.grower(drafters[name])} for name, what in described.items()}
            if not any(what["trees"] for what in described.values()):
                raise UsageError(f"--tree {trees[0]}: no drafter here grows trees; name an EAGLE-3 drafter with -d")
        measuring.room_for(session, o["max_tokens"], buckets[-1] if buckets else None)
        numbers = measuring.fitting(session, prompts, wanted, buckets[0]) if buckets else list(range(len(prompts)))
        if not numbers:
            raise UsageError(f"--context {buckets[0]}: no prompt is short enough; give a longer context")
        settings = {
            "target": Path(o["model"] or target.path).name, "prompt_file": Path(o["prompts"] or "built-in").name,
            "prompts": len(numbers), "left_out": len(prompts) - len(numbers), "draft_max": lengths, "perturb": wanted,
            "context": buckets,
            **{key: o[key] for key in ("max_tokens", "temp", "seed", "turns", "strict")}, "n_ctx": target.n_ctx,
            "texts": hashlib.sha256(repr(prompts).encode()).hexdigest()[:16], "files": files,
            **({"trees": [str(shape) for shape in trees]} if trees else {}),
        }  # fmt: skip
        journal = stack.enter_context(Journal(o["out"], KIND, settings))
        found: dict[tuple[str, int | None], list[Any]] = {}
        every: list[int | None] = [*buckets] or [None]
        work = [(name, length, i) for name in wanted for length in every for i in numbers]
        bar = stack.enter_context(click.progressbar(work, label="prompts", file=sys.stderr))
        for name, length, i in bar:
            key = f"{name}/{length or '-'}/{i}"
            if key not in journal.done:
                turns = measuring.measure(
                    session, drafters, prompts, i, (name, length), layers=target.capture_layers, lengths=lengths,
                    max_tokens=o["max_tokens"], sampler=sampler, seed=o["seed"], turns=o["turns"], trees=trees,
                )  # fmt: skip
                journal.add(key, {"family": prompts[i].family, "id": prompts[i].id, "turns": turns})
            found.setdefault((name, length), []).append(journal.done[key])
        return acceptance_report.record(found, described, settings, baseline, o["seed"])
