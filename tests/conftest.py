"""What all tests share: one thread each, and the same hypothesis examples every time."""

import os
import shutil

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


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Questions whose answer is blue, as a recipe writes them."""
    from school import write_colours

    return write_colours(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def starter(tmp_path_factory):
    """A pupil that knows the form of a reply and says red or blue, one as likely as the other."""
    from school import QUESTIONS, artifact, conversation, draft, fp32_run, write_bytes, write_data, write_pupil
    from schoolhouse.tasks.task import SYSTEM_THINKING
    from schoolhouse.train import sft

    folder = tmp_path_factory.mktemp("starter")
    base = artifact(write_bytes(write_pupil(folder / "base")))
    rows = [conversation(q, colour, SYSTEM_THINKING) for q in QUESTIONS for colour in ("red", "blue")]
    config = sft.Config(model="base", data="rows", epochs=120, batch=16, lr=1e-2)
    out = draft(folder / "out")
    sft.run(config, {"base": base, "rows": write_data(folder / "rows", rows)}, fp32_run(folder), out)
    return artifact(out.path)


@pytest.fixture(scope="session")
def browser():
    """A real browser; tests that want one are skipped where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
