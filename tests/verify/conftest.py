"""Fixtures: the compiled C implementation, and `backend`, which runs a test once per implementation."""

import pytest
from verify_backends import NUMPY, Backend, compiler, load_c


@pytest.fixture(scope="session")
def c_backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    if compiler() is None:
        pytest.skip("no C compiler: refspec runs on NumPy here")
    return load_c(tmp_path_factory.mktemp("sampling"))


@pytest.fixture(scope="session", params=["numpy", "c"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return NUMPY if request.param == "numpy" else request.getfixturevalue("c_backend")
