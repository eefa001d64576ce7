"""While speculation is off steps are run several to a call: the text, its end and its records are those of single steps."""

from pathlib import Path

import numpy as np
import pytest
import tiny

import refspec
from refspec import native
from refspec.sampling import Sampler
from refspec.targets import llama_judge
from refspec.windows.window import Window

PROMPT = np.random.default_rng(9).integers(3, tiny.V, 20).tolist()
pytestmark = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")


class Off(Window):
    """Never tries."""

    def new_text(self, held: int = 0) -> None:
        super().new_text(held)
        self.off, self._aside = True, -1e9


@pytest.mark.parametrize("most", [1, 2, 37, 200])
@pytest.mark.parametrize("sampler", [Sampler(logit_bias={2: -np.inf}), Sampler(temperature=1.5)], ids=["endless", "warm"])
def test_a_text_that_rests_is_the_plain_text_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, sampler: Sampler) -> None:
    pair = tiny.target(tmp_path / "target.gguf"), tiny.drafter(tmp_path / "drafter.gguf")
    calls: list[int] = []
    inner = llama_judge.LlamaJudge.rest

    def rest(self: llama_judge.LlamaJudge, pending: int, steps: int, position: int) -> tuple[list[int], list[float]]:
        tokens, seconds = inner(self, pending, steps, position)
        calls.append(len(tokens))
        return tokens, seconds

    monkeypatch.setattr(llama_judge.LlamaJudge, "rest", rest)
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
            assert all(len(s.tokens) == 1 and not s.draft and s.seconds.target > 0 for s in steps[0])
    assert most < 37 or max(calls) > 1, "several steps to a call"
