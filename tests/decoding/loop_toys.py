"""A target whose logits are a pure function of its rows, and drafters of every temper, for the tests of the decode
cycle.

The toy target computes from what its cache holds at this moment, so a wrong rollback changes the text; every drafter
checks that the cycle feeds it each row exactly once, with the token and the feature that belong together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refspec.reference.draft import Draft
from refspec.reference.sampling import Sampler, invert_cdf, p_target

N_STATES = 2


class ToyTarget:
    """V tokens, n_ctx rows; logits of a row depend on all tokens up to it. Tokens print as the bytes of `pieces`."""

    def __init__(self, n_vocab=7, n_ctx=40, end=(6,), sharpness=3.0, salt=0, pieces=None, template=None, bos=False):
        self.n_vocab, self.n_ctx, self.end_tokens, self.add_bos = n_vocab, n_ctx, frozenset(end), bos
        self.sharpness, self.salt = sharpness, salt
        self.pieces = pieces or [bytes([97 + i % 26]) for i in range(n_vocab)]
        self.metadata = {"tokenizer.chat_template": template} if template else {}
        self.rows: list[int] = []
        self.seconds = 0.0
        self.capturing = True
        self.closed = False
        self.restores = 0
        self.decodes: list[int] = []  # rows of every decode with logits

    @property
    def n_past(self):
        return len(self.rows)

    @property
    def tokens(self):
        return self.rows

    def law(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [V] after these tokens."""
        h = self.salt
        for token in tokens:
            h = (h * 1103515245 + 12345 + int(token) * 2654435761) % 2**31
        return (np.random.default_rng(h).standard_normal(self.n_vocab) * self.sharpness).astype(np.float32)

    def decode(self, tokens, *, logits="all"):
        tokens = [int(t) for t in tokens]
        assert tokens and len(self.rows) + len(tokens) <= self.n_ctx, "decoded past the context"
        first = len(self.rows)
        self.rows += tokens
        self._logits = [self.law(self.rows[: first + i + 1]) for i in range(len(tokens))] if logits == "all" else []
        self._features = np.array([feature(self.rows[: first + i + 1]) for i in range(len(tokens))], np.float32)
        if logits == "all":
            self.decodes.append(len(tokens))
        return len(tokens)

    def logits(self, i):
        return self._logits[i]

    def features(self):
        return self._features

    def rollback(self, n):
        assert 0 < n <= len(self.rows)
        del self.rows[n:]

    def reset(self):
        self.rows = []

    def tokenize(self, text, *, add_special=True, parse_special=False):
        data = text if isinstance(text, bytes) else text.encode()
        return ([0] if self.add_bos and add_special else []) + [b % (self.n_vocab - 1) for b in data]

    def token_to_bytes(self, token, *, special=False):
        return self.pieces[token]

    def close(self):
        self.closed = True


def feature(rows: Sequence[int]) -> list[float]:
    """The toy's captured state after these rows: its position and its own token."""
    return [float(len(rows) - 1), float(rows[-1])]


class ToyDrafter:
    """Checks the rows it is fed; `guess` maps the true token sequence x_1.. to the next draft token."""

    capture_layers = (0, 1)

    def __init__(self, n_vocab=7, at_most=None):
        self.n_vocab, self.at_most = n_vocab, at_most
        self.seconds = 0.0
        self.closed = False
        self.reset()

    @property
    def n_rows(self):
        return len(self.tokens)

    def reset(self):
        self.tokens: list[int] = []  # [n_rows] token of row P is x_{P+1}
        self.first: int | None = None  # x_0, seen only through the feature of row 0

    def extend(self, tokens, features):
        assert len(tokens) == len(features)
        for token, (position, own) in zip(tokens, features, strict=True):
            assert position == self.n_rows, "a feature of another row"
            if self.n_rows == 0:
                self.first = int(own)
            else:
                assert own == self.tokens[-1], "feature a_P must be the target's state at x_P"
            self.tokens.append(int(token))

    def draft(self, k, *, coins=None, sampler=None, stop=None):
        assert k > 0 and self.n_rows > 0
        k = k if self.at_most is None else min(k, self.at_most)
        text = [self.first, *self.tokens]
        drafted, distributions = [], []
        for i in range(k):
            logits = self.guess(text + drafted)
            if stop is not None and stop(i, float(p_target(logits, sampler or Sampler(temperature=1.0)).max())):
                k = i
                break
            if coins is None:
                drafted.append(int(np.argmax(logits)))
            else:
                distributions.append(p_target(logits, sampler))
                drafted.append(invert_cdf(distributions[-1], coins[i]))
        q = np.array(distributions).reshape(k, self.n_vocab) if coins is not None else None
        return Draft(np.array(drafted, np.int32), q, np.full(k, np.nan, np.float32))

    def guess(self, text):
        raise NotImplementedError

    def rollback(self, n_rows):
        del self.tokens[n_rows:]

    def close(self):
        self.closed = True


class Perfect(ToyDrafter):
    """Knows the target's logits: at temperature 0 every draft token is right."""

    def __init__(self, target, **options):
        super().__init__(target.n_vocab, **options)
        self.target = target

    def guess(self, text):
        return self.target.law(text)


class Noisy(Perfect):
    """The target's logits with noise: right sometimes."""

    def guess(self, text):
        noise = np.random.default_rng(hash(tuple(text)) % 2**32).standard_normal(self.n_vocab)
        return (super().guess(text) + 3 * noise).astype(np.float32)


class Adversarial(Perfect):
    """Drafts the least likely token."""

    def guess(self, text):
        return -super().guess(text)


class Ender(Perfect):
    """Drafts an end-of-generation token always."""

    def guess(self, text):
        logits = np.zeros(self.n_vocab, np.float32)
        logits[min(self.target.end_tokens, default=0)] = 9
        return logits


TEMPERS = [Perfect, Noisy, Adversarial, Ender]
