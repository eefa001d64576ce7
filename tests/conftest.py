"""For every test: a temporary cache, the laboratory of docs/lab on the path, and a toy target for tests of training."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
# toys that tests of other rooms use too
for folder in ("decoding", "formats", "engine"):
    sys.path.insert(0, str(Path(__file__).resolve().parent / folder))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_test_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("REFSPEC_FIRST_LOAD", "no")  # hundreds of toys, each of them new
        yield


# A toy corpus, the data made of it and a target trained on it.


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = ["the", "cat", "dog", "sees", "a", "tree", "12", "runs", "home", "def f(x):", "return", "\n"]
    path = tmp_path_factory.mktemp("corpus") / "chat.jsonl"
    with open(path, "w", encoding="utf-8") as out:
        for _ in range(500):
            talk = [" ".join(rng.choice(words, 60)) for _ in range(2)]
            messages = [{"role": r, "content": t} for r, t in zip(("user", "assistant"), talk, strict=True)]
            out.write(json.dumps({"messages": messages, "source": "toy", "domain": "chat"}) + "\n")
    return path


@pytest.fixture(scope="session")
def data(corpus, tmp_path_factory):
    from refspec.train.data import prepare

    out = tmp_path_factory.mktemp("data")
    prepare(corpus, out, vocab_size=320, seed=1, val_every=4)
    return out


@pytest.fixture(scope="session")
def target_run(data, tmp_path_factory):
    from toy_training import CONFIG, STEPS

    from refspec.train.target import train_target

    out = tmp_path_factory.mktemp("target")
    train_target(data, out, config=CONFIG, steps=STEPS, seed=3, threads=1)
    return out
