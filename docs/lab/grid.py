"""`python docs/lab grid`: a queue of drafter trainings that skips finished ones and continues a killed one.

A job's folder holds `job.json` (what it is), what `train_drafters` writes, and last of all `done.json` (its validation
figures).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from filelock import FileLock, Timeout

from lab.findings_records import JOB
from lab.plan import Job, Plan, read_plan
from refspec.cli.command import Command, note
from refspec.cli.group import output_option
from refspec.cli.train import device_option, folder
from refspec.errors import CheckpointError, UsageError
from refspec.evaluate.journal import fingerprint
from refspec.train.drafter import TrainedDrafter
from refspec.train.drafters import LENGTH, ROWS, Training, drafter_for, train_drafters
from refspec.train.loop import read_checkpoint

VALIDATE_EVERY, VALIDATION_BATCHES = 400, 16  # as run_steps and Training do
TIMED = 2  # steps of each depth timed for an estimate, after one that warms up


def is_done(folder: Path) -> bool:
    """Whether a job's folder is finished."""
    return (folder / "done.json").is_file()


def run_jobs(
    plan: Plan, data: Path | Sequence[Path], target_run: Path, out: Path, *, tell: Callable[[str], None], **how: Any
) -> None:
    """Train what is not done yet, in order; `how` goes to `train_drafters`. Raises CheckpointError, UsageError.

    Several processes may share a queue: a job that another one holds is passed over.
    """
    about = {job.name: describe(job, plan, target_run) for job in plan.jobs}
    for job in plan.jobs:  # every folder is checked before the first hour is spent
        _same(out / job.name, about[job.name])
    for number, job in enumerate(plan.jobs, 1):
        folder, title = out / job.name, f"[{number}/{len(plan.jobs)}] {job.name}"
        if is_done(folder):
            tell(f"{title}: done before")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "lock", timeout=0):  # the system lets go of it when the process dies
                if is_done(folder):  # by another process, since this one looked
                    continue
                tell(f"{title}: {', '.join(job.variants)}; {job.steps} steps")
                _write(folder / "job.json", about[job.name])
                figures = train_drafters(
                    data,
                    target_run,
                    folder,
                    drafters_of(job, plan, target_run),
                    steps=job.steps,
                    depth=job.depth,
                    seed=job.seed,
                    rows=plan.rows,
                    **how,
                )
                _write(folder / "done.json", {"figures": figures, "tokens": job.steps * ROWS * LENGTH})
        except Timeout:
            tell(f"{title}: another process trains it")


def drafters_of(job: Job, plan: Plan, target_run: Path) -> dict[str, TrainedDrafter]:
    """The variants of a job, sized for the target."""
    return {
        name: drafter_for(target_run, plan.draft_vocab, plan.capture_layers, **switches)
        for name, switches in job.variants.items()
    }


def describe(job: Job, plan: Plan, target_run: Path) -> dict[str, Any]:
    """What a job is, as its folder records it; the target is told by its weights."""
    weights = target_run / "hf"
    if not weights.is_dir():
        raise CheckpointError(f"{weights}: no such folder; train the target first, or name its run folder")
    layers = list(plan.capture_layers) if plan.capture_layers else None
    about = {
        "format": JOB,
        "run": job.run,
        "depth": job.depth,
        "seed": job.seed,
        "steps": job.steps,
        "tokens": job.steps * ROWS * LENGTH,
        "variants": job.variants,
        "draft_vocab": plan.draft_vocab,
        "capture_layers": layers,
        "target": fingerprint(weights),
    }
    return about if plan.rows == "cut" else about | {"rows": plan.rows}


def estimate_hours(
    plan: Plan, data: Path | Sequence[Path], target_run: Path, out: Path, **how: Any
) -> tuple[list[tuple[str, float]], float]:
    """Hours left for each job and in all, from timing a few steps of one variant at each depth on this machine as it is
    now.
    """
    left = [job for job in plan.jobs if not is_done(out / job.name)]
    cost = {depth: _time(plan, data, target_run, depth, left, **how) for depth in sorted({job.depth for job in left})}
    hours = []
    for job in plan.jobs:
        seconds = 0.0
        if job in left:
            lesson, step = cost[job.depth]
            steps = job.steps - _steps_done(out / job.name)
            variants = len(job.variants)
            seconds = steps * (lesson + variants * step)
            # a validation computes its lessons for every variant and runs them forward only, a third of a step
            seconds += steps / VALIDATE_EVERY * VALIDATION_BATCHES * variants * (lesson + step / 3)
        hours.append((job.name, seconds / 3600))
    return hours, sum(h for _, h in hours)


def _time(
    plan: Plan, data: Path | Sequence[Path], target_run: Path, depth: int, jobs: Sequence[Job], **how: Any
) -> tuple[float, float]:
    """Seconds of the target's part of a step, and of one variant's."""
    job = next(j for j in jobs if j.depth == depth)
    name, drafter = next(iter(drafters_of(job, plan, target_run).items()))
    training = Training(data, target_run, {name: drafter}, depth=depth, seed=job.seed, rows=plan.rows, **how)
    kinds = training.kinds
    best = [[float("inf"), float("inf")] for _ in range(kinds)]
    for step in range(kinds * (1 + TIMED)):
        began = _now(training)
        tokens, mask = training.batches[step]
        training.teacher.lesson(tokens[:, :-1], mask[:, :-1], 0.5)
        middle = _now(training)
        loss, _ = training.loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        training.optimizers.step(1e-9)
        kind = best[step % kinds]
        kind[:] = min(kind[0], middle - began), min(kind[1], _now(training) - middle)
    lesson, whole = (sum(times) / kinds for times in zip(*best, strict=True))
    return lesson, max(whole - lesson, 0.0)


def _now(training: Training) -> float:
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _steps_done(folder: Path) -> int:
    """Steps a kill would not lose: the last checkpoint's."""
    file = folder / "checkpoint.pt"
    return int(read_checkpoint(file)["step"]) if file.is_file() else 0


def _same(folder: Path, about: dict[str, Any]) -> None:
    """UsageError when the folder was begun as another job."""
    file = folder / "job.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; remove the folder, or name another --output") from None
    for key, value in about.items():
        if found.get(key) != value:
            raise UsageError(
                f"{file}: was begun with {key} = {json.dumps(found.get(key))[:120]}, now {json.dumps(value)[:120]}; "
                "name another --output"
            )


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)


@click.command("grid", cls=Command)
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--data", type=folder, required=True, multiple=True, help="Folder made by `train data`; several are read in turn."
)
@click.option("--target", "target_run", type=folder, required=True, help="Run folder of `train target`.")
@output_option("DIR", "Folder of the jobs' run folders.", type=folder)
@click.option("-t", "--threads", type=click.IntRange(1), help="Torch threads.")
@click.option("--compile/--no-compile", "compiled", default=False, help="Fuse with torch.compile (a C++ compiler).")
@click.option("--outtype", default="f16", show_default=True, help="Weights of the GGUFs: f32 f16 bf16 q8_0 q4_0.")
@device_option
@click.option("--dry-run", is_flag=True, help="Print the queue and the time it wants, and train nothing.")
@click.option("--estimate/--no-estimate", default=True, show_default=True, help="Time a few steps of each depth first.")
def command(
    plan: Path,
    data: tuple[Path, ...],
    target_run: Path,
    out: Path,
    dry_run: bool,
    estimate: bool,
    outtype: str,
    **how: Any,
) -> None:
    """Train every drafter of PLAN (JSON or TOML), by rank, each job in its own folder.

    \b
        python docs/lab grid docs/grid.json --data runs/data --target runs/target -o runs/grid --dry-run

    Kill it at any time and give the same command again. A plan may grow; a job that has begun must not change.
    Processes may share a queue: the same command twice, each with -t 1, trains more tokens a second on two cores than
    one with -t 2.
    """
    jobs, source = read_plan(plan), data[0] if len(data) == 1 else data
    if estimate:
        hours, total = estimate_hours(jobs, source, target_run, out, **(how | {"compiled": False}))
        for (name, left), job in zip(hours, jobs.jobs, strict=True):
            click.echo(
                f"{job.rank:3d}  {name:<28} {len(job.variants):3d} variants  {job.steps:6d} steps  "
                + (f"{left:6.2f} h" if left else "  done")
            )
        click.echo(f"left: {total:.1f} hours, if this machine stays as it was in the last minute")
    else:
        for job in jobs.jobs:
            state = "done" if is_done(out / job.name) else ""
            click.echo(f"{job.rank:3d}  {job.name:<28} {len(job.variants):3d} variants  {job.steps:6d} steps  {state}")
    if not dry_run:
        run_jobs(jobs, source, target_run, out, tell=note, outtype=outtype, **how)
