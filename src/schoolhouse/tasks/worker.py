"""A process of its own for verifiers that could take for ever: a model may answer `9**9**9**9`.

Each verifier has one worker, started at its first question and asked by one line of JSON at a time. A question that
takes too long, or too much memory, ends the worker; that answer counts as wrong, and the next question starts
another.
"""

import atexit
import json
import logging
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

LIMIT_S = 2.0
_MEMORY_BYTES = 2 * 2**30


class Worker:
    """The asking side; threads may share it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def ask(self, answer: str, expected: str) -> bool:
        """Return the verifier's word; False when it came to none."""
        with self._lock:
            try:
                return self._ask(json.dumps([answer, expected]))
            except (BrokenPipeError, EOFError):
                self._end()
                return False
            except BaseException:
                self._end()  # an interrupted question would leave its answer in the pipe for the next one
                raise

    def _ask(self, line: str) -> bool:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "schoolhouse.tasks.worker", self.kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        word = process.stdout.readline()
        if not word:
            raise EOFError
        return word == "yes\n"

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.communicate()


def regex_matches(answer: str, expected: str) -> bool:
    """Tell whether the pattern `expected` matches the whole answer."""
    return re.fullmatch(expected, answer.strip()) is not None


def maths_agrees(answer: str, expected: str) -> bool:
    """Tell whether two expressions, LaTeX or plain, have the same value."""
    import math_verify  # takes a second: it brings sympy

    # Boxed as a whole, several numbers are a set and words are a product; neither equals one of its members.
    gold, given = (
        math_verify.parse("\\boxed{" + text.strip().strip("$") + "}", parsing_timeout=None)
        for text in (expected, answer)
    )
    return bool(gold and given and math_verify.verify(gold, given, timeout_seconds=None))


def schema_fits(answer: str, expected: str) -> bool:
    """Tell whether a JSON text fits the JSON schema `expected`; what a schema refers to elsewhere is never fetched."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema, held = json.loads(expected), json.loads(answer, parse_constant=_no_json, object_pairs_hook=_once_each)
    return bool(validator_for(schema)(schema, registry=Registry()).is_valid(held))


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


_KINDS: dict[str, Callable[[str, str], bool]] = {
    "regex": regex_matches, "maths": maths_agrees, "json": schema_fits,
}  # fmt: skip


def main(kind: str) -> None:
    """Answer questions from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    verifier = _KINDS[kind]
    verifier("1", "{}" if kind == "json" else "1")  # imports happen now, outside of the time limit
    for line in sys.stdin:
        answer, expected = json.loads(line)
        # Without a handler the signal ends the process, even inside a computation that Python cannot interrupt.
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            agrees = verifier(answer, expected)
        except Exception:  # whatever a parser makes of a strange text, the answer is not right
            agrees = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("yes" if agrees else "no", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
