"""Places where a test can make the process die as if the power had gone."""

import os
import signal

_ENV = "SCHOOLHOUSE_FAIL_AT"
_passages: dict[str, int] = {}


def fail_point(name: str) -> None:
    """Kill this process with SIGKILL if the environment asks for it here.

    `SCHOOLHOUSE_FAIL_AT="artifact.rename"` kills at the first passage, `"artifact.rename:3"` at the third. Without the
    variable this costs one dictionary look-up.
    """
    wanted = os.environ.get(_ENV)
    if not wanted:
        return
    place, _, nth = wanted.partition(":")
    if place != name:
        return
    _passages[name] = _passages.get(name, 0) + 1
    if _passages[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
