"""How llama.cpp's threads wait for each other: what refspec asks of GNU OpenMP, unless the user asks for something."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from refspec.llama import api

ASK = "import os; from refspec.llama import api; print(os.environ.get('GOMP_SPINCOUNT'))"


def loaded(**said: str) -> subprocess.CompletedProcess[str]:
    """A new process that loads llama.cpp, with these variables and none else about waiting."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_DISPLAY_ENV")}
    return subprocess.run([sys.executable, "-c", ASK], env=clean | said, capture_output=True, text=True, check=True)


def test_threads_are_asked_to_sleep_sooner_unless_the_user_has_spoken() -> None:
    assert loaded().stdout.strip() == api.SPIN
    assert loaded(GOMP_SPINCOUNT="77").stdout.strip() == "77"
    assert loaded(OMP_WAIT_POLICY="active").stdout.strip() == "None"


def test_gnu_openmp_has_read_it() -> None:
    said = loaded(OMP_DISPLAY_ENV="VERBOSE").stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("llama.cpp here does not use GNU OpenMP")
    assert f"GOMP_SPINCOUNT = '{api.SPIN}'" in said
