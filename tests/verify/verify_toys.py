"""Toy models whose next-token logits depend on the whole history, and strategies for them."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from refspec.reference.sampling import Sampler

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class ToyModel:
    """Logits as a fixed pseudo-random function of the history; `grid` rounds them, so that ties occur."""

    vocab: int
    seed: int
    scale: float
    grid: bool
    masked: bool

    def logits(self, history: Tokens) -> np.ndarray:
        rng = np.random.default_rng([self.seed, len(history), *history])
        x = rng.normal(size=self.vocab) * self.scale
        if self.grid:
            x = np.round(x)
        if self.masked:
            x[1:][rng.random(self.vocab - 1) < 0.3] = -np.inf  # token 0 always remains
        return x.astype(np.float32)


@dataclass(frozen=True)
class ToyDrafter:
    """A law q of the next token: softmax of a model's logits over a draft vocabulary of the lowest `size` ids."""

    model: ToyModel
    size: int

    def q(self, history: Tokens) -> np.ndarray:
        x = self.model.logits(history).astype(np.float64)
        x[self.size :] = -np.inf
        q = np.exp(x - x.max())
        return q / q.sum()

    def tokens(self, history: Tokens, k: int) -> list[int]:
        """The deterministic draft: argmax, fed back."""
        draft: list[int] = []
        for _ in range(k):
            draft.append(int(np.argmax(self.q(history + tuple(draft)))))
        return draft


def models(vocab: int) -> st.SearchStrategy[ToyModel]:
    return st.builds(
        ToyModel,
        st.just(vocab),
        st.integers(0, 2**32 - 1),
        st.sampled_from([1.0, 0.5, 2.0, 6.0, 0.0]),
        st.booleans(),
        st.booleans(),
    )


def drafters(vocab: int) -> st.SearchStrategy[ToyDrafter]:
    return st.builds(ToyDrafter, models(vocab), st.integers(1, vocab))


def samplers(vocab: int, temperatures: tuple[float, ...] = (1.0, 1.7, 0.6, 0.0)) -> st.SearchStrategy[Sampler]:
    return st.builds(
        Sampler,
        temperature=st.sampled_from(temperatures),
        top_k=st.one_of(st.just(0), st.integers(0, vocab)),
        top_p=st.sampled_from([1.0, 1.0, 0.9, 0.6, 0.3]),
        min_p=st.sampled_from([0.0, 0.0, 0.05, 0.3]),
        logit_bias=st.dictionaries(st.integers(1, vocab - 1), st.sampled_from([-np.inf, -1.25, 0.7, 3.0]), max_size=2),
    )
