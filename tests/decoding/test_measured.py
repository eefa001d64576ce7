"""What an adaptive session measures before its first answer: enough to begin with, nothing that shows in the text."""

import pytest
from loop_toys import Perfect, ToyTarget

from refspec.decoding.cycle import prefill
from refspec.session import Session
from refspec.tuning import step_costs


def adaptive(n_ctx: int = 60) -> Session:
    target = ToyTarget(n_ctx=n_ctx, end=())
    return Session(target, Perfect(target), draft_max=4, adaptive=True)


def text(session: Session, **options) -> list[int]:
    run = session.generate(tokens=[1, 2, 3], max_tokens=20, **options)
    list(run)
    return run.tokens


def test_an_adaptive_session_knows_the_cost_of_every_length_before_its_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_costs, "BUDGET", 1e9)  # whatever this machine is doing
    session = adaptive()
    session.generate(tokens=[1, 2, 3])
    assert session.policy is not None
    assert all(session.policy.costs.seen[rows] for rows in range(1, step_costs.MOST + 2))


def test_measuring_does_not_show_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_costs, "BUDGET", 1e9)
    session = adaptive()
    first = text(session)
    assert first == text(session) == text(session, speculate=False) == text(session, adaptive=False)


def test_a_target_too_slow_to_measure_in_time_is_learned_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_costs, "BUDGET", 0.0)
    session = adaptive()
    session.generate(tokens=[1, 2, 3])
    assert session.policy is not None and not session.policy.costs.comparable
    assert sum(session.target.decodes) <= 2  # type: ignore[attr-defined]


def test_a_context_too_small_to_measure_in_is_no_error() -> None:
    session = adaptive(n_ctx=16)
    assert step_costs.measure_in_time(session.target, session.drafter) is None
    assert text(session) == text(session, speculate=False) != []


def test_what_disturbs_runs_does_not_change_what_sizes_cost_beside_each_other() -> None:
    true = {1: 4.0, 2: 5.0, 4: 7.0}
    times = {r: [t] * 8 for r, t in true.items()}
    assert step_costs.usual(times) == pytest.approx(true)
    times[2][1:6] = [7.0] * 5  # a slow spell, most of one size
    times[4][0] = 70.0  # one run during which another program ran
    found = step_costs.usual(times)
    assert {r: t / found[1] for r, t in found.items()} == pytest.approx({r: t / true[1] for r, t in true.items()})
    spent = sum(sum(runs) for runs in times.values()) - 70 + 14  # no run counts as more than twice what is usual
    assert sum(8 * t for t in found.values()) == pytest.approx(spent)


def test_twice_as_slow_for_all_is_twice_the_cost() -> None:
    true = {1: 4.0, 2: 5.0, 4: 7.0}
    speeds = (1.0, 2.0, 1.0, 2.0, 2.0)
    found = step_costs.usual({r: [t * speed for speed in speeds] for r, t in true.items()})
    assert found == pytest.approx({r: 1.6 * t for r, t in true.items()})


def test_single_rows_are_run_until_they_are_settled_and_small_sizes_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    session, times = adaptive(), iter(range(10**6))
    # the second run is disturbed
    monkeypatch.setattr(step_costs, "seconds_in", lambda model, call: (call(), 0.5 if next(times) == 1 else 0.001)[1])
    monkeypatch.setattr(step_costs, "ALONE", 0.01)
    text = step_costs.text_for(session.target)
    list(prefill(session.target, session.drafter, text[:21]))
    found, switches = step_costs.time_rows(
        session.target,
        session.drafter,
        text[20:],
        20,
        [(1, 2), (1,)],
        samples=4,
        drafted=lambda r: r - 1,
        each_round=lambda features: None,
    )
    assert {r: len(runs) for r, runs in found.items()} == {1: 10, 2: 4} and 0.5 not in found[1]
    assert len(switches) == 3
