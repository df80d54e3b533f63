"""Programs as answers: what passes, and what a program tries in vain."""

import os
import time

import pytest

from schoolhouse.tasks import sandbox
from schoolhouse.tasks.code import complaint_about, passes, read_tests
from schoolhouse.tasks.load import TaskTable, load_task

pytestmark = pytest.mark.skipif(sandbox.why_not() is not None, reason=str(sandbox.why_not()))

DOUBLE = "def f(x):\n    return 2 * x\n"
TESTS = "assert f(2) == 4\nassert f('ab') == 'abab'\nassert abs(f(0.15) - 0.3) < 1e-9\nassert f(1)\nassert not f(0)"


@pytest.mark.parametrize(
    "answer", [DOUBLE, f"```python\n{DOUBLE}```", f"\n```\n{DOUBLE}\n```\n", "f = lambda x: x + x"]
)
def test_a_program_that_does_what_is_asked_passes(answer):
    assert passes(answer, TESTS)


@pytest.mark.parametrize(
    "answer",
    [
        "", "def f(x): return x", "def f(x) return 2 * x", "print(4)", "def f(x): raise ValueError", "f = 4",
        f"{DOUBLE}\n1/0", f"Here it is:\n```python\n{DOUBLE}```", "x" * 30_000, "(" * 5000,
    ],
)  # fmt: skip
def test_others_do_not(answer):
    assert not passes(answer, TESTS)


@pytest.mark.parametrize(
    ("tests", "holds"),
    [
        ("assert f([1, 2]) == [1, 2, 1, 2]", True), ("assert f((1,)) == (1, 1)", True), ("assert f(2) == 4.0", True),
        ("assert f(2) is None", False), ("assert f(2) == 5", False), ("assert abs(f(2) - 4.1) <= 0.2", True),
        ("assert abs(f('a') - 4.1) <= 0.2", False), ("assert g(2) == 4", False),
        ("assert abs(f(10 ** 400) - 0.5) < 1", False), ("assert len(f([1])) == 2", True),
    ],
)  # fmt: skip
def test_what_assertions_mean(tests, holds):
    assert passes(DOUBLE, tests) is holds


ALWAYS = "class A:\n    def __eq__(self, o): return True\n    def __repr__(self): return '5'\n    __bool__ = __eq__\n"


@pytest.mark.parametrize(
    "attack",
    [
        ALWAYS + "def f(x): return A()",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os\nfor n in range(3, 40):\n    try: os.write(n, b'[\"True\"]')\n    except OSError: pass\nos._exit(0)",
        "import builtins; builtins.repr = lambda x: 'True'\ndef f(x): return 1",
        "import ast; ast.literal_eval = lambda x: 4\ndef f(x): return 1",
        "import sys; sys.modules['json'].dumps = lambda x: '[\"True\"]'\ndef f(x): return 1",
        "import gc\nfound = [o for o in gc.get_objects() if isinstance(o, dict) and 'expected' in o]\n"
        "f = lambda x: found[0]['expected']",
    ],
)
def test_no_trick_makes_a_wrong_program_pass(attack):
    assert not passes(attack, "assert f(2) == 4")


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "patients.jsonl"
    path.write_text("a secret")
    return path


def said(code, expression="found"):
    """What a program found in the sandbox; what it raised is found, too."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    (value,) = sandbox.evaluate(f"try:\n{body}except BaseException as e:\n    found = type(e).__name__\n", [expression])
    return value


def test_honest_programs_use_the_library():
    code = "import math, re, json, itertools, random, datetime, decimal\nfound = math.isqrt(50), random.random() < 1"
    assert said(code) == "(7, True)"


@pytest.mark.parametrize(
    "code",
    [
        "found = open({secret!r}).read()",
        "import os; found = os.listdir({folder!r})",
        "found = open('/etc/passwd').read()",
        "found = open('/proc/{pid}/environ').read()",
        "found = open('/proc/self/environ').read()",
        "found = open('/proc/self/mem', 'rb').read(1)",
        "found = open({folder!r} + '/new', 'w').write('x')",
        "found = open('/var/new', 'w').write('x')",
        "import os; found = os.mkdir({folder!r} + '/new')",
        "import os; found = os.remove({secret!r})",
        "import os; found = os.rename({secret!r}, {secret!r} + '2')",
        "import os; found = os.symlink('/etc', {folder!r} + '/etc')",
        "import os; found = os.chmod({secret!r}, 0)",
        "import os; found = os.truncate({secret!r}, 0)",
    ],
)
def test_files_are_out_of_reach(code, secret):
    found = said(code.format(secret=str(secret), folder=str(secret.parent), pid=os.getpid()))
    assert found in ("'PermissionError'", "'OSError'", "'AttributeError'"), found
    assert secret.read_text() == "a secret"
    assert [path.name for path in secret.parent.iterdir()] == [secret.name]


@pytest.mark.parametrize(
    "code",
    [
        "import socket; found = socket.socket()",
        "import socket; found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "import socket; found = socket.socketpair()",
        "import urllib.request; found = urllib.request.urlopen('http://127.0.0.1:9')",
        "import os; found = os.fork()",
        "import os; found = os.execv('/bin/true', ['true'])",
        "import subprocess; found = subprocess.run(['true'])",
        "import threading\nt = threading.Thread(target=print); t.start(); found = 1",
        "import os; found = os.kill(os.getppid(), 9)",
        "import os; found = os.setuid(0)",
        "import fcntl, os\nplace = os.open('/usr/lib', os.O_RDONLY)\n"
        "fcntl.fcntl(place, fcntl.F_SETOWN, os.getpid()); found = 1",  # a folder's changes would send it signals
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99)); found = 1",
        "import ctypes\nfound = ctypes.CDLL(None).ptrace(16, 1, 0, 0)\nassert found == 0",
        "import ctypes\nfound = ctypes.CDLL(None).unshare(0x10000000)\nassert found == 0",
        "import ctypes\nfound = ctypes.CDLL(None).syscall(425, 8, 0)\nassert found > 0",  # io_uring_setup
    ],
)
def test_network_and_processes_are_out_of_reach(code):
    found = said(code)
    assert found is None or found.endswith(("Error'", "Exception'")), found


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "x = [0]\nwhile True: x = x + x",
        "x = 9 ** 9 ** 9",
        "import time; time.sleep(600)",
        "import os\nwhile True: os.write(3, b'x' * 100000)",
        "def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f()",
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n"
        "while True: pass",
    ],
)
def test_time_memory_and_words_end(code):
    started = time.monotonic()
    assert sandbox.evaluate(code, ["1"]) == [None]
    assert time.monotonic() - started < sandbox.WALL_S + 5


def test_a_program_that_says_too_much_says_nothing():
    assert sandbox.evaluate("x = 'a' * (3 << 20)", ["x", "1"]) == [None, None]
    assert sandbox.evaluate("x = 'a' * 1000", ["len(x)"]) == ["1000"]


def test_the_environment_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("PASSWORD", "secret")
    assert "secret" not in (said("import os; found = dict(os.environ)") or "")
    assert os.environ["PASSWORD"] == "secret"


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("", "there is none"), ("f(2)", "line 1 is no assertion"), ("assert f(2) == g(3)", "no list of tests"),
        ("assert 1 < f(2)", "no list of tests"), ("assert 2 == 2", "line 1 asks nothing"),
        ("assert f(2) > 3", "line 1 compares no call with a literal"),
        ("assert (", "never closed"), ("assert f(2) == 4\nassert f(1) < 2", "line 2 compares no call"),
    ],
)  # fmt: skip
def test_tests_that_cannot_be_judged_from_outside_are_refused(tests, words):
    assert words in (complaint_about(tests) or "")


def test_good_tests_have_no_complaint():
    assert complaint_about(TESTS) is None
    assert [test.call for test in read_tests(TESTS)] == ["f(2)", "f('ab')", "f(0.15)", "f(1)", "f(0)"]


def test_where_nothing_can_be_locked_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    assert "cannot be used: programs are run on Linux with x86-64 or ARM64 only" in (complaint_about(TESTS) or "")


def test_where_locked_programs_cannot_run_the_verifier_says_so(monkeypatch):
    monkeypatch.setattr(sandbox, "_is_locked", lambda: False)
    assert "cannot be used: a program that was locked in for a trial could not run" in (complaint_about(TESTS) or "")


def test_a_file_of_programming_questions_is_a_task(tmp_path):
    import json

    path = tmp_path / "programs.jsonl"
    rows = [{"question": f"Write f that doubles, {s}.", "answer": TESTS, "split": s} for s in ("train", "test")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskTable(task=str(path), verifier="code"))
    (example,) = task.examples("train", "all", 1, 0)
    for program, score in ((DOUBLE, 1.0), ("def f(x): return x", 0.1)):
        assert task.judge(example, f"<think>so</think>\n<answer>\n{program}\n</answer>").score == score
