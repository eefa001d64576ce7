"""`refspec drift`: how a drafter's attention and state change with chain depth, beside its acceptance."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from refspec.cli.command import PATH, SAMPLING, SPECIALISTS, note, option
from refspec.cli.group import main, output_option, tokens_option
from refspec.cli.measure import json_option, prompt_options
from refspec.cli.pairs import about, pair_options, strictly
from refspec.errors import UsageError
from refspec.evaluate.perturb import PERTURBATIONS


@main.command()
@pair_options
@prompt_options
@option("--count", type=click.IntRange(1), default=20, show_default=True, help="How many prompts.")
@tokens_option(64, "At most so many tokens per prompt.")
@option(
    "--depth", type=click.IntRange(1, 64), default=8, show_default=True, help="Guesses per chain, trained for or not."
)
@output_option("DIR", "Also write drift.json, figures (PNG) and one page (HTML) there.", required=False)
@option("--from", "source", type=PATH, metavar="JSON", help="Measure nothing: show this record of an earlier run.")
@json_option
@option(
    "--every", type=click.IntRange(1), section=SPECIALISTS,
    help="Guess at every N-th output position, not where the decode cycle would.",
)  # fmt: skip
@option(
    "--perturb", type=click.Choice([*PERTURBATIONS]), metavar="NAME", default="none", show_default=True,
    section=SPECIALISTS,
    help="Change the chat template around each prompt, see `refspec acceptance -h`.",
)  # fmt: skip
@option("--temp", type=float, default=0.0, show_default=True, section=SAMPLING, help="Temperature of the target.")
@option(
    "--seed", type=int, default=0, show_default=True, section=SAMPLING,
    help="Seed of the bootstrap and the first prompt.",
)  # fmt: skip
def drift(source: str | None, out: str | None, as_json: bool, **o: Any) -> None:
    """Show how drafters change with the depth of a chain.

    \b
        refspec drift -m target.gguf -d a.gguf -d b.gguf -o drift/
    The embedded pair and its pre-norm twin:
        refspec drift
    The figures of an earlier run again:
        refspec drift --from drift/drift.json -o drift/

    Attention, the size of the state that is fed back, and acceptance, by depth.
    """
    from refspec.evaluate import drift_report

    began = perf_counter()
    if out is not None:
        _ready_for_figures(out)
    measured = drift_report.read(source) if source is not None else measure(strictly(o))
    note(f"{perf_counter() - began:.0f} s{_peak()}")
    click.echo(json.dumps(measured) if as_json else "\n".join(drift_report.table(measured)))
    if out is not None:
        from refspec.evaluate import drift_plots

        for path in drift_plots.write(measured, Path(out)):
            note(f"wrote {path}")


def measure(o: dict[str, Any]) -> dict[str, Any]:
    from refspec.evaluate import drift as measuring
    from refspec.evaluate import drift_report
    from refspec.evaluate.acceptance import room_for
    from refspec.evaluate.conversation import encode
    from refspec.evaluate.drift_models import load_pairs
    from refspec.evaluate.prompts import fit, read
    from refspec.reference.sampling import Sampler
    from refspec.session import Session

    sampler = Sampler(temperature=o["temp"])
    texts = [p.text for p in read(o["prompts"], o["families"])][: o["count"]]
    target, drafters, _ = load_pairs(
        o["model"], o["drafters"], n_ctx=o["n_ctx"], threads=o["threads"], gpu_layers=o["gpu_layers"],
        strict=o["strict"], anchors=o["anchors"], growths=o["growths"],
    )  # fmt: skip
    with Session(target, name=str(target.path)) as session:
        room = room_for(session, o["max_tokens"], None)
        prompts = [fit(encode(session, [text], o["perturb"]), room) for text in texts]
        with click.progressbar(length=len(prompts), label="prompts", file=sys.stderr) as bar:
            found = measuring.over(
                target, drafters, prompts, target.capture_layers, depth=o["depth"], max_tokens=o["max_tokens"],
                sampler=sampler, seed=o["seed"], every=o["every"], progress=lambda: bar.update(1),
            )  # fmt: skip
    settings = {
        "target": Path(o["model"] or target.path).name, "prompts": len(prompts),
        "prompt_file": Path(o["prompts"] or "built-in").name, "families": list(o["families"]),
        **{key: o[key] for key in ("max_tokens", "depth", "every", "temp", "seed", "perturb", "strict")},
    }  # fmt: skip
    return drift_report.record(found, about(drafters), settings, o["seed"])


def _peak() -> str:
    """The most memory this process has held, in words; nothing where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", at most {size / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MB of memory"


def _ready_for_figures(out: str) -> None:
    """What would fail after the measurement fails before it."""
    import refspec.evaluate.drift_plots  # noqa: F401  # says what to install when matplotlib is missing

    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {out}: {error.strerror or error}; name a directory that can be written") from None
