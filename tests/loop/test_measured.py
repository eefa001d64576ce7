"""What an adaptive session measures before its first answer: enough to begin with, nothing that shows in the text."""

import pytest
from loop_toys import Perfect, ToyTarget

from refspec.api import Session
from refspec.windows import measured


def adaptive(n_ctx: int = 60) -> Session:
    target = ToyTarget(n_ctx=n_ctx, end=())
    return Session(target, Perfect(target), draft_max=4, adaptive=True)


def text(session: Session, **options) -> list[int]:
    run = session.generate(tokens=[1, 2, 3], max_tokens=20, **options)
    list(run)
    return run.tokens


def test_an_adaptive_session_knows_the_cost_of_every_length_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "BUDGET", 1e9)  # whatever this machine is doing
    session = adaptive()
    session.generate(tokens=[1, 2, 3])
    assert session.window is not None
    assert all(session.window.costs.seen[rows] for rows in range(1, measured.MOST + 2))


def test_measuring_does_not_show_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "BUDGET", 1e9)
    session = adaptive()
    first = text(session)
    assert first == text(session) == text(session, speculate=False) == text(session, adaptive=False)


def test_a_target_too_slow_to_measure_in_time_is_learned_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "BUDGET", 0.0)
    session = adaptive()
    session.generate(tokens=[1, 2, 3])
    assert session.window is not None and not session.window.costs.known
    assert sum(session.target.decodes) <= 2  # type: ignore[attr-defined]


def test_a_context_too_small_to_measure_in_is_no_error() -> None:
    session = adaptive(n_ctx=16)
    assert measured.quick(session) is None
    assert text(session) == text(session, speculate=False) != []


def test_a_machine_that_changes_its_speed_between_rounds_does_not_change_the_proportions() -> None:
    true = {1: 4.0, 2: 5.0, 4: 7.0}
    speeds = (1.0, 2.0, 1.0, 2.0, 2.0)
    found = measured.in_proportion({r: [t * speed for speed in speeds] for r, t in true.items()})
    assert found == pytest.approx({r: 2 * t for r, t in true.items()})
    disturbed = {r: [t * speed for speed in speeds] for r, t in true.items()}
    disturbed[4][0] = 70.0  # one run during which another program ran
    assert measured.in_proportion(disturbed) == pytest.approx(found)
