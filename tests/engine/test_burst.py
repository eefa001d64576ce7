"""Steps run several to a call:

the text, its end and its records are those of single steps, drafted or plain.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec import embedded, native
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


def settings_of_runs() -> list[Any]:
    breakers = Penalties(dry_multiplier=1.0, dry_allowed_length=2)
    return [
        pytest.param({"draft_max": 2}, id="chain"),
        pytest.param({"draft_max": 5, "sampler": Sampler(temperature=0.8)}, id="warm"),
        pytest.param({"draft_max": 3, "sampler": Sampler(penalties=embedded.penalties())}, id="penalties"),
        pytest.param({"draft_max": 3, "sampler": Sampler(penalties=breakers)}, id="breakers"),
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
    options = {"seed": 4} | options
    with refspec.load(exact=exact, n_ctx=160, threads=1) as session:

        def run(prompt: str, max_tokens: int) -> tuple[list[Any], str]:
            generation = session.generate(prompt, max_tokens=max_tokens, **options)
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
