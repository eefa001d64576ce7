"""Which backend runs, and what is said about it: each case in a fresh process, because the choice is made at import."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refspec import native
from refspec.reference.draft import Ops

NATIVE = Path(__file__).resolve().parents[2] / "native"
WITHOUT_C = "import sys; sys.modules['refspec._native'] = None\n"  # what a missing extension looks like to an import
SHOW = "from refspec import native; native.check(); print(native.backend)"

needs_c = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("REFSPEC_BACKEND", "REFSPEC_NATIVE_PATH")}
    return subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True)


def test_the_package_serves_as_the_ops_of_a_drafter() -> None:
    assert [name for name in vars(Ops) if not name.startswith("_") and not hasattr(native, name)] == []


def test_numpy_is_taken_when_asked_for_and_nothing_is_said() -> None:
    result = run(SHOW, REFSPEC_BACKEND="numpy")
    assert (result.returncode, result.stdout, result.stderr) == (0, "numpy\n", "")


def test_without_the_c_module_numpy_runs_and_says_so_once() -> None:
    result = run(WITHOUT_C + SHOW + "\nimport refspec.native.ops, refspec.native.verify")
    assert (result.returncode, result.stdout) == (0, "numpy\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("refspec: running on NumPy (") and line.endswith("; for speed: python native/build_ffi.py")


def test_without_the_c_module_asking_for_it_is_an_error_that_names_the_build_command() -> None:
    result = run(WITHOUT_C + SHOW, REFSPEC_BACKEND="c")
    assert result.returncode == 1
    assert re.search(r"BackendError: REFSPEC_BACKEND = c: .*python native/build_ffi.py$", result.stderr.strip())


UNKNOWN = "REFSPEC_BACKEND = 'cuda' is unknown; set it to numpy or c, or unset it"


def test_an_unknown_backend_lists_the_known_ones() -> None:
    result = run(SHOW, REFSPEC_BACKEND="cuda")
    assert result.returncode == 1
    assert result.stderr.strip().endswith(f"RefspecError: {UNKNOWN}")


@pytest.mark.parametrize(
    "use", ["native.coin(1, 2)", "native.argmax([1.0])", "native.lib.rs_build()", "native.ffi.NULL"]
)
def test_an_unknown_backend_does_not_fall_back_when_nobody_checked(use: str) -> None:
    result = run(f"from refspec import native\n{use}", REFSPEC_BACKEND="cuda")
    assert result.returncode == 1 and UNKNOWN in result.stderr


def test_the_command_line_prints_an_unknown_backend_as_one_line() -> None:
    result = run("import sys; from refspec.cli import main; main(['generate', '-p', 'x'])", REFSPEC_BACKEND="cuda")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"refspec: {UNKNOWN}\n"


def test_a_native_path_that_is_no_module_is_an_error() -> None:
    result = run(SHOW, REFSPEC_NATIVE_PATH=__file__)
    assert result.returncode == 1
    assert "BackendError" in result.stderr and "REFSPEC_NATIVE_PATH" in result.stderr


@needs_c
def test_c_is_taken_when_asked_for() -> None:
    path = str(sys.modules["refspec._native"].__file__) if "refspec._native" in sys.modules else ""
    path = path or os.environ.get("REFSPEC_NATIVE_PATH", "")
    result = run(SHOW, REFSPEC_BACKEND="c", REFSPEC_NATIVE_PATH=path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "c\n", "")


def test_numpy_and_the_door_agree_on_every_name_they_share() -> None:
    code = """
import numpy as np
from refspec import native
x = np.arange(6, dtype=np.float32).reshape(2, 3)
print(native.gather_features([x, 2 * x], 2, 3).tolist(), native.argmax_prob(np.zeros(4, np.float32)),
      native.draft_feedback(x[1], np.ones(3, np.float32), 0.0, True).round(3).tolist(), native.all_finite(x),
      native.coin(1, 2), native.argmax(x[0]))
"""
    outputs = [run(code, REFSPEC_BACKEND="numpy").stdout, run(code).stdout]
    assert outputs[0] == outputs[1] != ""


@needs_c
def test_every_function_of_the_header_is_in_the_module() -> None:
    names = set(re.findall(r"\b(rs_\w+)\(", (NATIVE / "refspec.h").read_text()))
    assert len(names) > 20
    assert {name for name in names if not hasattr(native.lib, name)} == set()


def test_the_cdef_block_of_the_header_holds_no_preprocessor_line() -> None:
    block = (NATIVE / "refspec.h").read_text().split("/* cdef begin */")[1].split("/* cdef end */")[0]
    assert [line for line in block.splitlines() if line.lstrip().startswith("#")] == []


def stateless() -> list[Path]:
    """Every C file but the one that stands in llama.cpp's place, and says so."""
    return [source for source in NATIVE.glob("*.c") if source.name != "matmul_hook.c"]


def test_the_c_sources_allocate_nothing() -> None:
    for source in stateless():
        text = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.S)
        assert not re.findall(r"\b(?:malloc|calloc|realloc|alloca|free)\s*\(", text), source.name


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("nm")), reason="needs cc and nm")
def test_the_c_sources_keep_no_state_between_calls(tmp_path: Path) -> None:
    for source in stateless():
        compiled = tmp_path / f"{source.stem}.o"
        subprocess.run(["cc", "-std=c11", "-O1", "-c", str(source), "-o", str(compiled)], check=True)
        symbols = subprocess.run(["nm", str(compiled)], check=True, capture_output=True, text=True).stdout
        writable = [line for line in symbols.splitlines() if line.split()[-2] in "bBdDcC"]  # data, zeroed data, common
        assert writable == [], source.name


@needs_c
def test_inputs_may_be_read_only_strided_or_of_another_type() -> None:
    base = np.arange(24, dtype=np.float64).reshape(4, 6)
    strided, gain = base[::2, ::2], np.ones(3)
    plain = np.ascontiguousarray(strided, dtype=np.float32)
    plain.flags.writeable = False
    expected = native.rms_norm(plain, gain.astype(np.float32), 1e-5)
    assert np.array_equal(native.rms_norm(strided, gain, 1e-5), expected)  # type: ignore[arg-type]
