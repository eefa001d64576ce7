"""500 hostile files end in one line or are run; none ends the process, hangs, swells or raises what is no error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzz import campaign


def test_what_a_campaign_counts(tmp_path: Path) -> None:
    counts = campaign.run(0, 3)
    assert sum(counts.ended.values()) == 3 and str(counts).startswith("3 cases: refused ")
    worker = campaign.Worker(tmp_path)
    worker.process.kill()
    worker.process.wait()
    assert not worker.alive


@pytest.mark.skipif(os.name != "posix", reason="the workers are watched through /proc and select")
def test_five_hundred_cases() -> None:
    counts = campaign.run(0, 500)
    assert not counts.failures, "\n".join(counts.failures)
    assert counts.ended["refused"] > 200 and counts.ended["accepted"] > 30 and counts.ended["not made"] < 50
