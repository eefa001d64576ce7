"""While speculation is off a real target decodes plainly, and the drafter's positions wait."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec.adaptive.policy import ChainPolicy
from refspec.reference.sampling import Sampler

PROMPT = np.random.default_rng(9).integers(3, tiny.V, 20).tolist()


def endless(session: refspec.Session) -> Sampler:
    """Greedy text that does not end by itself, whatever the kernels here round."""
    return Sampler(logit_bias=dict.fromkeys(session.target.end_tokens, -np.inf))


def off() -> ChainPolicy:
    """A policy that can afford no try."""
    policy = ChainPolicy(4)
    policy.budget.reserve = -1e9
    policy.budget.speculated(0.0, 0.0)
    return policy


@pytest.mark.parametrize("most", [1, 2, 37, 200])
@pytest.mark.parametrize(
    "sampler", [Sampler(logit_bias={2: -np.inf}), Sampler(temperature=1.5)], ids=["endless", "warm"]
)
def test_an_output_while_speculation_is_off_is_the_plain_one_to_its_end(
    tmp_path: Path, most: int, sampler: Sampler
) -> None:
    pair = tiny.target(tmp_path / "target.gguf"), tiny.drafter(tmp_path / "drafter.gguf")
    with refspec.load(*pair, n_ctx=96, threads=1, reproducible="f32", adaptive=False) as session:
        for seed in range(6):
            options = {"tokens": PROMPT, "max_tokens": most, "sampler": sampler, "seed": seed}
            runs, steps = [], []
            for how in ({"policy": off()}, {"speculate": False}):
                runs.append(session.generate(**options, **how))  # type: ignore[arg-type]
                steps.append([event.step for event in runs[-1]])
            assert runs[0].tokens == runs[1].tokens and runs[0].text == runs[1].text
            assert runs[0].statistics.stop == runs[1].statistics.stop
            assert [s.position for s in steps[0]] == list(range(len(runs[0].tokens)))
            assert all(len(s.tokens) == 1 and not s.draft and s.seconds.target > 0 for s in [*steps[0], *steps[1]])


def test_positions_of_an_output_that_begins_off_wait_from_its_first_step_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with refspec.load(n_ctx=160, threads=1) as session:
        drafter: Any = session.drafter
        rows: list[int] = []
        for name in ("extend", "survey"):
            inner = getattr(drafter, name)
            monkeypatch.setattr(
                drafter,
                name,
                lambda tokens, features, inner=inner: (rows.append(len(tokens)), inner(tokens, features))[1],
            )
        for _ in range(2):
            generation = session.generate("Name three rivers.", max_tokens=20, policy=off(), sampler=endless(session))
            assert len(list(generation)) > 9
            assert sum(rows) == len(generation.prompt) - 1, "those of the prompt and no others"
            rows.clear()
