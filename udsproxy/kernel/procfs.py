"""What /proc says of a process (proc(5)).

Rules: never raises because a process is gone or hidden: then the answer is None.
"""

from __future__ import annotations


def read_comm(pid: int) -> str | None:
    """``/proc/PID/comm``: the first 15 bytes of the process's name."""
    if pid <= 0:
        return None  # a process outside our pid namespace (pid_namespaces(7))
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode("utf-8", "backslashreplace")
    except OSError:
        return None
