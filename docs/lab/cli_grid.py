"""`refspec train grid`: a queue of drafter trainings from a plan file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lab.group import lab
from refspec.cli.group import note
from refspec.cli.train import device_option, folder


@lab.command()
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--data", type=folder, required=True, multiple=True, help="Folder made by `train data`; several are read in turn."
)
@click.option("--target", "target_run", type=folder, required=True, help="Run folder of `train target`.")
@click.option("-o", "--out", type=folder, required=True, help="Folder of the jobs' run folders.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Torch threads.")
@click.option("--compile/--no-compile", "compiled", default=False, help="Fuse with torch.compile (a C++ compiler).")
@click.option("--outtype", default="f16", show_default=True, help="Weights of the GGUFs: f32 f16 bf16 q8_0 q4_0.")
@device_option
@click.option("--dry-run", is_flag=True, help="Print the queue and the time it wants, and train nothing.")
@click.option("--estimate/--no-estimate", default=True, show_default=True, help="Time a few steps of each depth first.")
def grid(
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
        refspec train grid docs/grid.json --data runs/data --target runs/target -o runs/grid --dry-run

    Kill it at any time and give the same command again. A plan may grow; a job that has begun must not change.
    Processes may share a queue: the same command twice, each with -t 1, trains more tokens a second on two cores than
    one with -t 2.
    """
    from lab import grid as queue
    from lab.plan import read_plan

    jobs, source = read_plan(plan), data[0] if len(data) == 1 else data
    if estimate:
        hours, total = queue.estimate(jobs, source, target_run, out, **(how | {"compiled": False}))
        for (name, left), job in zip(hours, jobs.jobs, strict=True):
            click.echo(
                f"{job.rank:3d}  {name:<28} {len(job.variants):3d} variants  {job.steps:6d} steps  "
                + (f"{left:6.2f} h" if left else "  done")
            )
        click.echo(f"left: {total:.1f} hours, if this machine stays as it was in the last minute")
    else:
        for job in jobs.jobs:
            state = "done" if queue.is_done(out / job.name) else ""
            click.echo(f"{job.rank:3d}  {job.name:<28} {len(job.variants):3d} variants  {job.steps:6d} steps  {state}")
    if not dry_run:
        queue.run_jobs(jobs, source, target_run, out, tell=note, outtype=outtype, **how)
