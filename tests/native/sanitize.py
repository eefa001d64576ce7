"""Runs the tests of the C code on a copy of it built with address and undefined-behaviour sanitizers; not a test
itself.

    python tests/native/sanitize.py            # exit status 0: every test passed and no sanitizer said anything

Any report fails the run, also one from a child process. Before the tests, two planted errors must be caught: a silent
sanitizer would otherwise look like clean code. Where the compiler has no sanitizer runtime that Python can preload (it
is looked for on Linux only), the run says so and exits with 0.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "sanitize"
TESTS = ["tests/native", "tests/agreement/test_numpy_c.py", "tests/verify", "tests/grammar/test_tokens.py"]
TESTS += ["tests/engine/test_matmul_hook.py"]
FLAGS = "-g -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=address,undefined"

LOADED = "from refspec import native; assert native.ffi.string(native.lib.rs_build()) == b'sanitized'"
HEAP_OVERFLOW = """
import numpy as np
from refspec import native
x = np.zeros(5000, np.float32)
at = native.ffi.from_buffer("float[]", x)
native.lib.rs_swiglu(at, at, at, 5001)
"""
MISALIGNED = """
from refspec import native
memory = native.ffi.new("char[]", 64)
native.lib.rs_argmax(native.ffi.cast("float *", native.ffi.addressof(memory, 1)), 4)
"""


def pytest_configure() -> None:
    """As a pytest plugin (-p sanitize): fewer examples and no deadlines, because sanitized code is slow."""
    from hypothesis import settings

    settings.register_profile("sanitize", max_examples=30, deadline=None)
    settings.load_profile("sanitize")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a pytest plugin: leave out what runs no C, the NumPy variants of tests that come in both."""
    items[:] = [item for item in items if not item.name.endswith("[numpy]")]


def compiler() -> list[str]:
    """The C compiler setuptools would take."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]


def runtime() -> Path | None:
    """The address sanitizer's shared runtime, or None."""
    if not sys.platform.startswith("linux") or shutil.which(compiler()[0]) is None:
        return None
    for name in ("libasan.so", f"libclang_rt.asan-{os.uname().machine}.so"):
        found = subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if os.path.isabs(found) and Path(found).exists():
            return Path(found).resolve()
    return None


def environment(asan: Path, module: Path) -> dict[str, str]:
    """What makes Python load the sanitized module and every report land in a file of its own."""
    reports = f"log_path={OUT / 'report'}"
    return os.environ | {
        "LD_PRELOAD": str(asan),  # the runtime must come before libc, and Python itself is not linked with it
        # Python frees nothing at exit, on purpose; the quarantine of freed memory would grow to a gigabyte
        "ASAN_OPTIONS": f"detect_leaks=0:quarantine_size_mb=64:{reports}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:{reports}",
        "PYTHONMALLOC": "malloc",  # Python's own allocator would hide an overflow from one small object into the next
        "OMP_NUM_THREADS": "1",
        "REFSPEC_BACKEND": "c",
        "REFSPEC_NATIVE_PATH": str(module),
        "CC": shlex.join([*compiler(), *shlex.split(FLAGS)]),  # for tests that compile C themselves
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }


def reports() -> list[Path]:
    """What the sanitizers wrote."""
    return sorted(OUT.glob("report*"))


def planted(code: str, expected: str, env: dict[str, str]) -> None:
    """Run code with an error in it; exit unless a sanitizer ends the process and names the error."""
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    said = "".join(path.read_text(errors="replace") for path in reports()) + result.stderr
    if result.returncode == 0 or expected not in said:
        raise SystemExit(f"sanitize: a planted error went unnoticed ({expected!r} expected)\n{said}")
    for path in reports():
        path.unlink()


def main() -> int:
    """Build, check the sanitizers, run the tests."""
    asan = runtime()
    if asan is None:
        print("sanitize: skipped, this system has no address sanitizer runtime to preload")
        return 0
    shutil.rmtree(OUT, ignore_errors=True)
    build = [sys.executable, str(ROOT / "native" / "build_ffi.py"), "--sanitize", "--out", str(OUT)]
    module = Path(subprocess.run(build, check=True, capture_output=True, text=True).stdout.strip())
    env = environment(asan, module)

    subprocess.run([sys.executable, "-c", LOADED], env=env, cwd=ROOT, check=True)
    planted(HEAP_OVERFLOW, "heap-buffer-overflow", env)
    planted(MISALIGNED, "misaligned address", env)

    tests = [name for name in TESTS if (ROOT / name).exists()] + sys.argv[1:]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "sanitize", "-p", "no:cacheprovider", *tests]
    status = subprocess.run(command, env=env, cwd=ROOT).returncode
    for path in reports():
        print(path.read_text(errors="replace"), file=sys.stderr)
        status = status or 1
    print("sanitize: clean" if status == 0 else "sanitize: FAILED")
    return status


if __name__ == "__main__":
    sys.exit(main())
