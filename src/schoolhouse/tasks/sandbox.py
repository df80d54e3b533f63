"""A process in which a model's program may do nothing but compute: no network, no files, no other process.

The same file is both sides. The asking side starts it as a program of its own; that one locks itself in for ever, and
then runs what it was given. It can read Python's own library and write its answer, up to a size; time and memory end.
Three of Linux's locks, each enough against most: resource limits, Landlock (which files), and seccomp (a list of the
system calls that are allowed; every other one fails). Where the system has them not, nothing is run.
Sources: the kernel's documentation, userspace-api/landlock and userspace-api/seccomp_filter.
"""

import ctypes
import functools
import io
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

CPU_S, WALL_S = 2, 6
MEMORY_BYTES = 512 << 20
ANSWER_BYTES = 1 << 20
_OPEN_FILES = 32

_X86 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "readv": 19, "writev": 20, "access": 21, "sched_yield": 24, "mremap": 25, "madvise": 28,
    "dup": 32, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "getcwd": 79, "readlink": 89,
    "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
    "getdents64": 217, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
    "openat": 257, "newfstatat": 262, "readlinkat": 267, "set_robust_list": 273, "getrandom": 318, "statx": 332,
    "rseq": 334, "faccessat2": 439,
}  # fmt: skip
_ARM = {
    "getcwd": 17, "dup": 23, "faccessat": 48, "openat": 56, "close": 57, "getdents64": 61, "lseek": 62,
    "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "ppoll": 73, "readlinkat": 78, "newfstatat": 79,
    "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101,
    "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124,
    "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153, "uname": 160,
    "getrlimit": 163, "getrusage": 165, "gettimeofday": 169, "getpid": 172, "getuid": 174, "geteuid": 175,
    "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222,
    "mprotect": 226, "madvise": 233, "getrandom": 278, "statx": 291, "rseq": 293, "faccessat2": 439,
}  # fmt: skip
_SYSTEMS = {"x86_64": (0xC000003E, _X86), "aarch64": (0xC00000B7, _ARM)}
"""Of each processor how the kernel calls it, and the numbers of the calls that are allowed."""


def why_not() -> str | None:
    """Say why no program can be locked in here, or None where one can."""
    if sys.platform != "linux" or platform.machine() not in _SYSTEMS:
        return f"programs are run on Linux with x86-64 or ARM64 only, this is {sys.platform} on {platform.machine()}"
    if _landlock_version() < 1:
        return "this kernel has no Landlock, or it is switched off (Linux 5.13 and later have it)"
    return None if _is_locked() else "a program that was locked in for a trial could not run"


@functools.cache
def _is_locked() -> bool:
    return evaluate("import math", ["math.isqrt(49)"]) == ["7"]


def evaluate(code: str, expressions: list[str]) -> list[str | None]:
    """Run a program in a locked process and evaluate expressions after it; return what `repr` says of each value.

    None for an expression that fails; for all of them if the program fails, runs out of time or memory, or says more
    than a megabyte.
    """
    asked = json.dumps({"code": code, "expressions": expressions}).encode()
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
        question.write(asked)
        question.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", __file__], stdin=question, stdout=answer, stderr=subprocess.DEVNULL,
            cwd="/", env={"PYTHONHASHSEED": "0"}, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(WALL_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
        answer.seek(0)
        return _said(answer.read(ANSWER_BYTES + 1), len(expressions))


def _said(answer: bytes, count: int) -> list[str | None]:
    try:
        values = json.loads(answer)
    except (ValueError, RecursionError):
        return [None] * count
    if not isinstance(values, list) or len(values) != count:
        return [None] * count
    return [value if isinstance(value, str) else None for value in values]


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    return result


_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all processors


def _landlock_version() -> int:
    return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))


def _lock_files(readable: list[str]) -> None:
    """From now on nothing but these folders can be opened, and those for reading only."""
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(_landlock_version(), 16)) - 1  # rights that this kernel knows of
    read_file, read_folder = 1 << 2, 1 << 3
    rules = ctypes.create_string_buffer(struct.pack("Q", files))
    ruleset = _call(_CREATE_RULESET, rules, ctypes.c_size_t(8), ctypes.c_uint32(0))
    if ruleset < 0:
        raise OSError("no ruleset")
    for folder in readable:
        place = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", read_file | read_folder, place))
        if _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)):
            raise OSError("no rule")
        os.close(place)
    if _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)):
        raise OSError("not restricted")
    os.close(ruleset)


def _lock_calls() -> None:
    """From now on every system call that is not on the list fails; one by another processor's numbers ends it all."""
    architecture, calls = _SYSTEMS[platform.machine()]
    load, equal, give = 0x20, 0x15, 0x06  # a word of the call's data; jump if equal; the verdict
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000  # 1: EPERM
    numbers = sorted(calls.values())
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(give, 0, 0, refuse), (give, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    set_seccomp, filter_mode = 22, 2
    if ctypes.CDLL(None, use_errno=True).prctl(set_seccomp, filter_mode, head, 0, 0):
        raise OSError("no filter")


def _lock() -> None:
    import resource

    for what, most in (
        (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, ANSWER_BYTES),
        (resource.RLIMIT_NOFILE, _OPEN_FILES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))
    no_new_privileges = 38
    if ctypes.CDLL(None, use_errno=True).prctl(no_new_privileges, 1, 0, 0, 0):
        raise OSError("privileges could grow")
    library = [str(Path(os.__file__).parent), "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    _lock_files([place for place in library if Path(place).exists()])
    _lock_calls()


def main() -> None:
    """The locked side: read what to run from standard input, lock, run, and write what the expressions gave."""
    asked = json.load(sys.stdin)
    answer = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for place in (0, 1, 2):
        os.dup2(null, place)
    os.closerange(answer + 1, 256)
    sys.stdin, sys.stdout = io.StringIO(), io.StringIO()
    _lock()
    names: dict[str, object] = {"__name__": "answer"}
    exec(compile(asked["code"], "answer", "exec"), names)
    values = [_value(expression, names) for expression in asked["expressions"]]
    os.write(answer, json.dumps(values).encode())
    os._exit(0)


def _value(expression: str, names: dict[str, object]) -> str | None:
    try:
        return repr(eval(compile(expression, "test", "eval"), names))
    except Exception:
        return None


if __name__ == "__main__":
    main()
