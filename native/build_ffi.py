"""Turns native/refspec.h and the C sources beside it into the extension module refspec._native (cffi API mode).

As a script it builds in place: refspec/_native.<abi>.so. As a module it offers `ffibuilder` to setuptools (setup.py).
The cdef is the block of refspec.h between its two cdef marks: one declaration for C, cffi and the reader.

Flags: -O3 because the kernels are written for the vectorizer; -ffp-contract=off because a fused multiply-add would make
the last bit depend on the machine and on the compiler, and the agreement with NumPy is stated to the last bits;
-fno-trapping-math because nobody reads the exception flags and it frees the vectorizer without changing a value; no
-march=native, because a wheel built here must run elsewhere. REFSPEC_CFLAGS appends flags.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sysconfig
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from cffi import FFI, VerificationError

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent
FLAGS = "-std=c11 -O3 -ffp-contract=off -fno-trapping-math -Wall -Wextra"
MSVC_FLAGS = "/std:c11 /O2 /fp:precise"
SANITIZER_FLAGS = (
    "-O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=address,undefined,float-cast-overflow"
)


def cdef() -> str:
    """The declarations of refspec.h that cffi reads."""
    header = (NATIVE / "refspec.h").read_text(encoding="utf-8")
    return header.split("/* cdef begin */", 1)[1].split("/* cdef end */", 1)[0]


def make_ffibuilder(native: Path, sanitize: bool = False, optional: bool = False) -> FFI:
    """The FFI builder of refspec._native, sources below `native`; sanitize adds checks that end the process.

    setuptools insists on paths relative to setup.py, cffi's own compile on paths that survive its chdir: hence
    `native`. With `optional`, setuptools warns and installs the rest when the compiler fails or is missing.
    """
    msvc, link = os.name == "nt", list[str]()
    flags = shlex.split(MSVC_FLAGS if msvc else FLAGS)
    if sanitize:
        flags += shlex.split(SANITIZER_FLAGS)
        link = ["-fsanitize=address,undefined"]
    builder = FFI()
    builder.cdef(cdef())
    builder.set_source(
        "refspec._native",
        '#include "refspec.h"',
        sources=sorted(str(source) for source in native.glob("*.c")),
        include_dirs=[str(native)],
        depends=sorted(str(header) for header in native.glob("*.h")),
        extra_compile_args=flags + shlex.split(os.environ.get("REFSPEC_CFLAGS", "")),
        extra_link_args=link,
        libraries=[] if msvc else ["m"],
        optional=optional,
    )
    return builder


ffibuilder = make_ffibuilder(Path("native"), optional=True)


def main() -> None:
    """Build in place, or a sanitized copy elsewhere; prints the path of the module."""
    parser = argparse.ArgumentParser(description="Build the C module refspec._native.")
    parser.add_argument("--sanitize", action="store_true", help="with -fsanitize=address,undefined")
    parser.add_argument("--out", type=Path, default=ROOT / "refspec", help="directory (default: refspec/)")
    parser.add_argument("--verbose", action="store_true", help="show the compiler's command lines")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:  # object files and the generated source stay out of the tree
        try:
            built = Path(make_ffibuilder(NATIVE, options.sanitize).compile(tmpdir=work, verbose=options.verbose))
        except (VerificationError, ImportError) as error:  # ImportError: Python >= 3.12 without setuptools
            reason = f"{error}; needs a C compiler and setuptools, --verbose shows more"
            raise SystemExit(f"native/build_ffi.py: {reason}") from None
        fresh = options.out / "_native.new"
        shutil.copy(built, fresh)
        print(fresh.replace(options.out / module_name(built)))  # in one step: a process that runs the old file keeps it


def module_name(built: Path) -> str:
    """The file name setuptools gives the same module, so that the two ways to build leave one module."""
    abi3 = ".abi3.so" in EXTENSION_SUFFIXES and not any(map(sysconfig.get_config_var, ("Py_DEBUG", "Py_GIL_DISABLED")))
    return "_native.abi3.so" if abi3 else built.name


if __name__ == "__main__":
    main()
