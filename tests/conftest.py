"""For every test: recast models go to a temporary cache, never to the user's;

the laboratory (docs/lab) and the toys of the decode cycle (tests/decoding/loop_toys.py) can be imported.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "decoding"))  # loop_toys


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_test_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
