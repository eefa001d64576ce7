"""`python docs/lab findings`: measure the drafters of a training grid, and write what the records say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from lab import findings_numbers, findings_text
from lab.findings_records import read
from lab.plan import read_plan
from refspec.cli import acceptance as acceptance_command
from refspec.cli import drift as drift_command
from refspec.cli.command import Group, note
from refspec.cli.group import output_option
from refspec.errors import CheckpointError, UsageError

folder = click.Path(file_okay=False, path_type=Path)
ACCEPTANCE = {
    "count",
    "max_tokens",
    "draft_max",
    "temp",
    "seed",
    "turns",
    "perturb",
    "context",
    "families",
    "anchor",
    "grow",
    "tree",
}
DRIFT = {"count", "max_tokens", "depth", "every", "temp", "seed", "perturb", "families", "anchor", "grow"}
NEITHER = {"name", "kind", "runs"}


@click.group("findings", cls=Group)
def command() -> None:
    """From trained drafters to docs/findings.md.

    \b
        python docs/lab grid docs/grid.json --data runs/data --target runs/target -o runs/grid
        python docs/lab findings measure docs/grid.json runs/grid --target runs/target/target.gguf \\
            --prompts bench.jsonl -o docs/records
        python docs/lab findings write docs/records -o docs
    """


@command.command()
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("grid", type=folder)
@click.option("--target", metavar="GGUF", required=True, help="The target the drafters were trained for.")
@click.option(
    "--prompts", metavar="FILE", help="JSONL (turns, benchmark) or one prompt a line; else the built-in ones."
)
@output_option("DIR", "Folder of the records, one folder a job.", type=folder)
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads of the target and the drafters.")
def measure(plan: Path, grid: Path, target: str, prompts: str | None, out: Path, threads: int | None) -> None:
    """Record what PLAN says under `measure` for each finished job of GRID; a record that is there is not made again."""
    wanted = read_plan(plan)
    for entry in wanted.measure:
        _check(plan, entry)
    done = [job for job in wanted.jobs if (grid / job.name / "done.json").is_file()]
    note(f"{len(done)} of {len(wanted.jobs)} jobs are trained")
    for job in done:
        copy_job(grid / job.name, out / job.name)
        files = [str(grid / job.name / f"{name}.gguf") for name in job.variants]
        for entry in wanted.measure:
            file = out / job.name / f"{entry['name']}.json"
            if file.exists() or job.run not in entry.get("runs", [job.run]):
                continue
            note(f"{job.name}: {entry['name']}")
            partial = file.with_suffix(".partial.jsonl")
            options = _options(entry, target, files, prompts, threads, str(partial))
            record = drift_command.measure(options) if entry["kind"] == "drift" else acceptance_command.run(options)
            file.with_suffix(".tmp").write_text(json.dumps(record) + "\n", "utf-8")
            os.replace(file.with_suffix(".tmp"), file)
            partial.unlink(missing_ok=True)


@command.command()
@click.argument("records", type=folder)
@output_option(
    "DIR",
    "Folder of findings.md and its figures.",
    required=False,
    type=folder,
    default=Path("docs"),
    show_default=True,
)
def write(records: Path, out: Path) -> None:
    """Write findings.md, findings.json (every number of the text) and the figures from RECORDS."""
    from lab import findings_plots  # the `plot` extra

    found = findings_numbers.derive(read(records))
    out.mkdir(parents=True, exist_ok=True)
    for old in findings_plots.FIGURES:  # a figure that has lost its records must not stay
        (out / f"findings-{old}.png").unlink(missing_ok=True)
    written = findings_plots.write(found, out)
    figures = [path.stem.removeprefix("findings-") for path in written]
    for name, text in (
        ("findings.json", json.dumps(found, indent=1) + "\n"),
        ("findings.md", findings_text.markdown(found, figures)),
    ):
        (out / name).write_text(text, "utf-8")
        written.append(out / name)
    for path in written:
        note(f"wrote {path}")


def _check(plan: Path, entry: Any) -> None:
    """UsageError for a measurement that could not run, before the first one does."""
    if (
        not isinstance(entry, dict)
        or entry.get("kind") not in ("drift", "acceptance")
        or not isinstance(entry.get("name"), str)
    ):
        raise UsageError(f"{plan}: measure: every entry needs a name and a kind, drift or acceptance")
    known = NEITHER | (DRIFT if entry["kind"] == "drift" else ACCEPTANCE)
    if strange := sorted(set(entry) - known):
        raise UsageError(f"{plan}: measure {entry['name']!r}: unknown key {strange[0]!r}")


def _options(
    entry: dict[str, Any], target: str, drafters: list[str], prompts: str | None, threads: int | None, partial: str
) -> dict[str, Any]:
    """What the command line would have given."""
    shared = {
        "model": target,
        "drafters": drafters,
        "prompts": prompts,
        "threads": threads,
        "n_ctx": 0,
        "gpu_layers": 0,
        "strict": False,
        "families": tuple(entry.get("families", ())),
        "count": entry.get("count"),
        "temp": float(entry.get("temp", 0.0)),
        "seed": int(entry.get("seed", 0)),
        "lookup": False,
        "anchors": tuple(entry.get("anchor", ())),
        "growths": tuple(entry.get("grow", ())),
        "max_tokens": int(entry.get("max_tokens", 96)),
    }
    if entry["kind"] == "drift":
        own = {
            "depth": int(entry.get("depth", 8)),
            "every": entry.get("every"),
            "perturb": entry.get("perturb", "none"),
        }
        return shared | own | {"count": entry.get("count", 20)}
    own = {
        "draft_max": str(entry.get("draft_max", "5")),
        "context": entry.get("context"),
        "perturbations": tuple(entry.get("perturb", ())),
        "turns": entry.get("turns"),
        "trees": tuple(entry.get("tree", ())),
        "baseline": None,
        "engine": None,
        "out": partial,
    }
    return shared | own


def copy_job(grid: Path, out: Path) -> None:
    """job.json and the validation figures beside the records; CheckpointError where the records are of another job."""
    out.mkdir(parents=True, exist_ok=True)
    about = json.loads((grid / "job.json").read_text("utf-8"))
    about["validation"] = json.loads((grid / "done.json").read_text("utf-8"))["figures"]
    file = out / "job.json"
    if file.exists() and json.loads(file.read_text("utf-8")) != about:
        raise CheckpointError(f"{file}: the records beside it are of another training; name another --output")
    file.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
