"""Fixtures: `backend` runs a test once per implementation, `compiled` once per C implementation."""

import pytest
import tree_backends
from verify_backends import EXTENSION, NUMPY, Backend, compiler, load_c

from refspec import native


@pytest.fixture(scope="session")
def c_backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    if compiler() is None:
        pytest.skip("no C compiler: refspec runs on NumPy here")
    return load_c(tmp_path_factory.mktemp("sampling"))


def named(request: pytest.FixtureRequest) -> Backend:
    if request.param == "c":
        backend: Backend = request.getfixturevalue("c_backend")
        return backend
    if request.param == "extension" and native.backend != "c":
        pytest.skip("the C module is not built or not wanted")
    return NUMPY if request.param == "numpy" else EXTENSION


@pytest.fixture(scope="session", params=["numpy", "c", "extension"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return named(request)


@pytest.fixture(scope="session", params=["c", "extension"])
def compiled(request: pytest.FixtureRequest) -> Backend:
    return named(request)


@pytest.fixture(scope="session")
def c_trees(tmp_path_factory: pytest.TempPathFactory) -> tree_backends.TreeBackend:
    if compiler() is None:
        pytest.skip("no C compiler: refspec runs on NumPy here")
    return tree_backends.load_c(tmp_path_factory.mktemp("tree"))


def named_trees(request: pytest.FixtureRequest) -> tree_backends.TreeBackend:
    if request.param == "c":
        backend: tree_backends.TreeBackend = request.getfixturevalue("c_trees")
        return backend
    if request.param == "extension" and native.backend != "c":
        pytest.skip("the C module is not built or not wanted")
    return tree_backends.NUMPY if request.param == "numpy" else tree_backends.EXTENSION


@pytest.fixture(scope="session", params=["numpy", "c", "extension"])
def trees(request: pytest.FixtureRequest) -> tree_backends.TreeBackend:
    return named_trees(request)


@pytest.fixture(scope="session", params=["c", "extension"])
def compiled_trees(request: pytest.FixtureRequest) -> tree_backends.TreeBackend:
    return named_trees(request)
