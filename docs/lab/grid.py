"""A queue of drafter trainings: each in its own folder, finished ones skipped, a killed one continued.

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

import torch
from filelock import FileLock, Timeout
from lab.findings_records import JOB
from lab.plan import Job, Plan

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
                    data, target_run, folder, drafters_of(job, plan, target_run), steps=job.steps, depth=job.depth, seed=job.seed,
                    rows=plan.rows, **how,
                )  # fmt: skip
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
        "format": JOB, "run": job.run, "depth": job.depth, "seed": job.seed, "steps": job.steps, "tokens": job.steps * ROWS * LENGTH,
        "variants": job.variants, "draft_vocab": plan.draft_vocab, "capture_layers": layers, "target": fingerprint(weights),
    }  # fmt: skip
    return about if plan.rows == "cut" else about | {"rows": plan.rows}


def estimate(
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
            # a validation makes its lessons anew for every variant and runs them forward only, a third of a step
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
        raise CheckpointError(f"{file}: {error}; remove the folder, or name another --out") from None
    for key, value in about.items():
        if found.get(key) != value:
            raise UsageError(
                f"{file}: was begun with {key} = {json.dumps(found.get(key))[:120]}, now {json.dumps(value)[:120]}; name another --out"
            )


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)
