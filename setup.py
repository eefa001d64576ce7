"""Only what pyproject.toml cannot say: where the C module comes from. Everything else is there.

The extension is optional: without a C compiler pip prints a warning, installs the rest, and refspec runs on NumPy.
"""

from setuptools import setup

setup(cffi_modules=["native/build_ffi.py:ffibuilder"])
