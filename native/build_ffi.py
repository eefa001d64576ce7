"""Turns native/refspec.h and the C sources beside it into the extension module refspec._native (cffi API mode).

As a script, `python native/build_ffi.py` builds in place: refspec/_native.c and refspec/_native.<abi>.so. As a module it offers
`ffibuilder` to setuptools (setup.py). The cdef is the block of refspec.h between its two cdef marks: one declaration for C,
cffi and the reader.

Flags: -O3 because the kernels are written for the vectorizer; -ffp-contract=off because a fused multiply-add would make the
last bit depend on the machine and on the compiler, and the agreement with NumPy is stated to the last bits; no -march=native,
because a wheel built here must run elsewhere. REFSPEC_CFLAGS appends flags (the sanitizer build uses it).
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent
SOURCES = ("ops.c", "eagle3.c", "hooks.c", "sampling.c")


def cdef() -> str:
    """The declarations of refspec.h that cffi reads."""
    header = (NATIVE / "refspec.h").read_text(encoding="utf-8")
    return header.split("/* cdef begin */", 1)[1].split("/* cdef end */", 1)[0]


def make_ffibuilder(native: Path, sanitize: bool = False) -> FFI:
    """The FFI builder of refspec._native, sources below `native`; sanitize adds checks that end the process.

    setuptools insists on paths relative to setup.py, cffi's own compile on paths that survive its chdir: hence the argument.
    """
    msvc, link = os.name == "nt", list[str]()
    flags = ["/std:c11", "/O2", "/fp:precise"] if msvc else ["-std=c11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra"]
    if sanitize:
        flags += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-fsanitize=address,undefined,float-cast-overflow"]
        link = ["-fsanitize=address,undefined"]
    builder = FFI()
    builder.cdef(cdef())
    builder.set_source(
        "refspec._native",
        '#include "refspec.h"',
        sources=[str(native / name) for name in SOURCES],
        include_dirs=[str(native)],
        depends=[str(native / "refspec.h")],
        extra_compile_args=flags + shlex.split(os.environ.get("REFSPEC_CFLAGS", "")),
        extra_link_args=link,
        libraries=[] if msvc else ["m"],
    )
    return builder


ffibuilder = make_ffibuilder(Path("native"))


def main() -> None:
    """Build in place, or a sanitized copy elsewhere."""
    parser = argparse.ArgumentParser(description="Build the C module refspec._native.")
    parser.add_argument("--sanitize", action="store_true", help="with -fsanitize=address,undefined")
    parser.add_argument("--out", type=Path, default=ROOT, help="directory that receives refspec/_native.* (default: the source tree)")
    parser.add_argument("--verbose", action="store_true", help="show the compiler's command lines")
    options = parser.parse_args()
    print(make_ffibuilder(NATIVE, options.sanitize).compile(tmpdir=str(options.out.resolve()), verbose=options.verbose))


if __name__ == "__main__":
    main()
