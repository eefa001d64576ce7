"""Steps run several to a call:

the text, its end and its records are those of single steps, drafted, adaptive or plain.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec import embedded, native
from refspec.adaptive.base import TRIAL
from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import Window
from refspec.decoding.burst import Ahead, Lent
from refspec.errors import BackendError
from refspec.llama import judge
from refspec.reference.metrics import Step
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler

PROMPT = np.random.default_rng(9).integers(3, tiny.V, 20).tolist()
pytestmark = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")


def endless(session: refspec.Session) -> Sampler:
    """Greedy text that does not end by itself, whatever the kernels here round."""
    return Sampler(logit_bias=dict.fromkeys(session.target.end_tokens, -np.inf))


class Off(Window):
    """Never tries."""

    def expect(self, sureness: float) -> None:
        super().expect(sureness)
        self.off, self._aside = True, -1e9

    def watched(self, decided: int) -> None:
        pass


class Settled(Window):
    """Knows what it knows, whatever is seen: what it decides does not depend on the clock."""

    def __init__(self, most: int) -> None:
        super().__init__(
            most, Costs({r: 1 + 0.12 * (r - 1) for r in range(1, most + 2)}, switch=0.2, draft=0.02, feed=0.02)
        )
        rng = np.random.default_rng(0)
        for _ in range(200):
            confidence = float(rng.random())
            self.belief.see(confidence, int(rng.integers(0, most)), bool(rng.random() < confidence))
        self._tried, self._trial, self.reserve = [9999] * (most + 1), 0, 1e9

    @property
    def allowed(self) -> float:
        return 1e9

    def learn(self, step: Step) -> None:
        super().learn(step)
        self._take_in()  # at once, as C does

    def _take_in(self) -> None:
        for t in self._untold:
            self.belief.learn(t.confidences, len(t.step.draft), t.step.accepted, t.refused)
        self._untold, self._trial = [], 0

    def went(self, steps: Sequence[Step], around: float) -> None:
        self._before = len(steps[-1].draft) + 1
        self._age += len(steps)
        self._steps += len(steps)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each call ran."""
    sizes: list[int] = []
    inner = judge.LlamaJudge.several

    def several(
        self: judge.LlamaJudge, pending: int, ahead: Ahead, drafter: Lent | None, position: int, room: int
    ) -> list[Step]:
        ran = inner(self, pending, ahead, drafter, position, room)
        sizes.append(len(ran))
        return ran

    monkeypatch.setattr(judge.LlamaJudge, "several", several)
    return sizes


def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge.LlamaJudge, "several", lambda *_: [])


def told(steps: Sequence[Step]) -> list[Any]:
    """What steps did, without what they took."""
    return [(s.position, list(s.draft), s.accepted, list(s.tokens), s.stop) for s in steps]


@pytest.mark.parametrize("most", [1, 2, 37, 200])
@pytest.mark.parametrize(
    "sampler", [Sampler(logit_bias={2: -np.inf}), Sampler(temperature=1.5)], ids=["endless", "warm"]
)
def test_a_text_that_rests_is_the_plain_text_to_its_end(
    tmp_path: Path, calls: list[int], most: int, sampler: Sampler
) -> None:
    pair = tiny.target(tmp_path / "target.gguf"), tiny.drafter(tmp_path / "drafter.gguf")
    with refspec.load(*pair, n_ctx=96, threads=1, strict=True) as session:
        for seed in range(6):
            options = {"tokens": PROMPT, "max_tokens": most, "sampler": sampler, "seed": seed}
            runs = [session.generate(window=Off(4), **options), session.generate(speculate=False, **options)]  # type: ignore[arg-type]
            steps = []
            for run in runs:
                session.current = run
                session.target.capturing = run is runs[0]
                steps.append([event.step for event in run])
            assert runs[0].tokens == runs[1].tokens and runs[0].text == runs[1].text
            assert runs[0].statistics.stop == runs[1].statistics.stop
            assert [s.position for s in steps[0]] == list(range(len(runs[0].tokens)))
            assert all(len(s.tokens) == 1 and not s.draft and s.seconds.target > 0 for s in [*steps[0], *steps[1]])
    assert most < 37 or max(calls) > 1, "several steps to a call"


def test_rows_of_a_text_that_begins_off_wait_from_its_first_step_on(
    monkeypatch: pytest.MonkeyPatch, calls: list[int]
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
            generation = session.generate("Name three rivers.", max_tokens=20, window=Off(4), sampler=endless(session))
            assert len(list(generation)) > 9 and max(calls) > 1
            assert sum(rows) == len(generation.prompt) - 1, "those of the prompt and no others"
            rows.clear()


def settings_of_runs() -> list[Any]:
    breakers = Penalties(dry_multiplier=1.0, dry_allowed_length=2)
    return [
        pytest.param({"draft_max": 2}, id="chain"),
        pytest.param({"draft_max": 5, "sampler": Sampler(temperature=0.8)}, id="warm"),
        pytest.param({"draft_max": 3, "sampler": Sampler(penalties=embedded.penalties())}, id="penalties"),
        pytest.param({"draft_max": 3, "sampler": Sampler(penalties=breakers)}, id="breakers"),
        pytest.param({"draft_max": 6, "settled": True}, id="window"),
        pytest.param(
            {"draft_max": 6, "settled": True, "sampler": Sampler(temperature=0.6, penalties=breakers)},
            id="window, warm, breakers",
        ),
        pytest.param({"speculate": False}, id="plain"),
        pytest.param(
            {"speculate": False, "sampler": Sampler(temperature=1.0, penalties=breakers)}, id="plain, warm, breakers"
        ),
    ]


@pytest.mark.parametrize("options", settings_of_runs())
@pytest.mark.parametrize("exact", [False, True])
def test_every_step_is_the_one_that_would_have_been_taken_alone(
    monkeypatch: pytest.MonkeyPatch, calls: list[int], options: dict[str, Any], exact: bool
) -> None:
    prompts = ["What is 12 + 30?", "Write a Python function that adds two numbers.", "Name three rivers."]
    settled, options = "settled" in options, {"seed": 4} | {k: v for k, v in options.items() if k != "settled"}
    with refspec.load(exact=exact, n_ctx=160, threads=1) as session:

        def run(prompt: str, max_tokens: int) -> tuple[list[Any], str]:
            generation = session.generate(
                prompt, max_tokens=max_tokens, window=Settled(6) if settled else None, **options
            )
            return told([event.step for event in generation]), generation.text

        for i, prompt in enumerate(prompts):
            most = 90 if i else 37
            together = run(prompt, most)
            with monkeypatch.context() as alone:
                one_at_a_time(alone)
                assert run(prompt, most) == together
        assert max(calls) > 1 and sum(calls) > 10


def test_a_burst_that_stops_in_the_middle_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call may run one step, two, or several: the cache, the drafter and the coins do not notice."""
    inner, rng = judge.LlamaJudge.several, np.random.default_rng(1)
    with refspec.load(n_ctx=160, threads=1) as session:
        whole = session.generate("Name three rivers.", max_tokens=100, draft_max=3)
        steps = told([event.step for event in whole])

        def few(self: Any, pending: int, ahead: Ahead, *rest: Any) -> list[Step]:
            return inner(self, pending, ahead._replace(steps=int(rng.integers(0, 4))), *rest)

        monkeypatch.setattr(judge.LlamaJudge, "several", few)
        assert (
            told([event.step for event in session.generate("Name three rivers.", max_tokens=100, draft_max=3)]) == steps
        )


def test_a_damaged_drafter_is_named_as_by_a_single_step(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = judge.LlamaJudge.several

    def three(self: Any, pending: int, ahead: Ahead, *rest: Any) -> list[Step]:
        return inner(self, pending, ahead._replace(steps=min(ahead.steps, 3)), *rest)

    # or a fast machine has the text before the drafter is damaged
    monkeypatch.setattr(judge.LlamaJudge, "several", three)
    with refspec.load(n_ctx=160, threads=1) as session:
        drafter: Any = session.drafter
        with pytest.raises(BackendError, match=r"drafter\.gguf: the drafter's logits are not finite"):
            for event in session.generate("Name three rivers.", max_tokens=60, sampler=endless(session)):
                if event.step.position > 5:
                    drafter._chain._outputs["true_logits"][:] = np.nan


def test_a_window_is_asked_where_it_has_to_choose_itself() -> None:
    window = Window(4)
    assert window.ahead() is None, "nothing is known of what steps cost"
    settled = Settled(4)
    ahead = settled.ahead()
    assert ahead is not None and ahead.draft >= 1 and ahead.window is not None and ahead.steps > 1
    settled._trial = TRIAL
    assert settled.ahead() is None, "a trial is planned step by step"
