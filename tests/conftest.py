"""What all tests share: one thread each, and the same hypothesis examples every time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "house", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


@pytest.fixture
def kernels_anew(monkeypatch):
    """Forget which kernels were loaded, before and after, and what the environment asks for."""
    monkeypatch.delenv("SCHOOLHOUSE_KERNELS", raising=False)
    from schoolhouse.kernels import native  # here, so that tests which need no torch do not wait for it

    def forget():
        for function in (native.library, native.has_tiles, native._load):
            function.cache_clear()

    forget()
    yield forget
    monkeypatch.undo()
    forget()
    native.library()


@pytest.fixture
def threads_back():
    """Gives torch, and so the kernels, as many threads after a test as before it."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def plain_kernels(monkeypatch, kernels_anew):
    """Plain torch, as where there is no compiler or a processor that the C++ is not for."""
    monkeypatch.setenv("SCHOOLHOUSE_KERNELS", "plain")
