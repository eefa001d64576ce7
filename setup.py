"""Only what pyproject.toml cannot say: where the C module comes from, and how an editable copy is found.

The extension is optional: without a C compiler pip prints a warning, installs the rest, and refspec runs on NumPy.
"""

from pathlib import Path

from setuptools import setup

# An editable copy is a plain path, which mypy and editors can follow, where the link refspec/convert -> ../convert
# exists. In a checkout without symbolic links (Windows) it is setuptools' import hook, which they cannot.
LINKED = Path("refspec/convert").is_dir()

setup(
    cffi_modules=["native/build_ffi.py:ffibuilder"],
    options={"editable_wheel": {"mode": "compat"}} if LINKED else {},
)
