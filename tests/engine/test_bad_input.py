"""Bad input never ends the process:

every case of bad_cases.py raises the error it should, in one line, in a process that survives.
"""

import json
import subprocess
import sys
from pathlib import Path

import bad_cases
import pytest


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """What each case raised; a case that ended the process is recorded with its exit code and the rest runs on."""
    home, waiting = tmp_path_factory.mktemp("bad"), list(bad_cases.CASES)
    outcomes: dict[str, tuple[str, str]] = {}
    script = Path(bad_cases.__file__)
    while waiting:
        process = subprocess.run([sys.executable, script, home, *waiting], capture_output=True, text=True, timeout=300)
        for line in process.stdout.splitlines():
            name, kind, message = json.loads(line)
            outcomes[name] = kind, message
            waiting.remove(name)
        if waiting:
            outcomes[waiting.pop(0)] = f"process ended with {process.returncode}", process.stderr[-500:]
        elif process.stderr:
            outcomes["stderr"] = "", process.stderr
    return outcomes


@pytest.mark.parametrize("name", bad_cases.CASES)
def test_bad_input_is_one_clear_error(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    error, words, _ = bad_cases.CASES[name]
    kind, message = outcomes[name]
    assert kind == error, message
    assert words in message
    assert message and "\n" not in message


def test_nothing_is_printed_past_the_exceptions(outcomes: dict[str, tuple[str, str]]) -> None:
    assert "stderr" not in outcomes, outcomes["stderr"][1]


def test_an_unforeseen_abort_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import tiny, numpy as np; from pathlib import Path;"
        "from refspec.llama import api; from refspec.llama.target import LlamaTarget;"
        "t = LlamaTarget(tiny.target(Path(sys.argv[1]) / 'x.gguf', with_tokenizer=False), n_ctx=64);"
        "b = np.zeros(9, np.int32); api.tokenize(t.model.vocab, b'abc', 3, b.ctypes.data, 9, False, False)"
    )
    here = Path(__file__).parent
    process = subprocess.run([sys.executable, "-c", code, tmp_path, here], capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stdout == "" and process.stderr.count("\n") == 1 and "internal check" in process.stderr
