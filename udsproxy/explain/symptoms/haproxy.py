"""HAProxy: its alerts, and the termination states of its log.

Rules: as in `udsproxy.explain.symptoms.nginx`.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.causes import DIED, LINE_BEFORE, QUEUED, RESTARTED, SLOW, TERMINATED
from udsproxy.explain.symptoms.model import Symptom

HAPROXY: tuple[Symptom, ...] = (
    Symptom(
        "HAProxy: SC in the termination state",
        "HAProxy could not connect to the server: its connect() failed, or it is known to be down (sC: timeout "
        "connect was over). The client got 503.",
        (
            Cause(
                "The server is not running (connect() ENOENT or ECONNREFUSED), or its queue is full (EAGAIN).",
                "`udsproxy state PATH`; HAProxy's own line `Server ... is DOWN, reason: Layer4 connection "
                "problem`.",
                "See `udsproxy explain connect`.",
            ),
            Cause(
                "HAProxy runs in a chroot, or as a user who may not use the socket.",
                "`grep -E 'chroot|user|group'` in its configuration; `namei -l PATH`.",
                "Put the socket inside the chroot, with rights for HAProxy's user.",
            ),
        ),
        pattern=r"^(?-i:[Ss]C)[A-Z-]{0,2}$|^HAProxy: SC in the",
        programs=("haproxy",),
    ),
    Symptom(
        "HAProxy: sH in the termination state",
        "The server sent no header of an answer before timeout server was over: HAProxy's own clock. The "
        "client got 504.",
        (SLOW, QUEUED),
        pattern=r"^(?-i:s[HD])[A-Z-]{0,2}$|^HAProxy: (?-i:sH) in the",
        programs=("haproxy",),
    ),
    Symptom(
        "HAProxy: SH in the termination state",
        "The server closed, or reset the connection, before a whole header had come. The client got 502.",
        (DIED, TERMINATED, RESTARTED),
        pattern=r"^(?-i:S[HD])[A-Z-]{0,2}$|^HAProxy: (?-i:SH) in the",
        programs=("haproxy",),
    ),
    Symptom(
        "HAProxy: sQ in the termination state",
        "The request waited in HAProxy's own queue, because the server had maxconn connections, until timeout "
        "queue was over. The client got 503.",
        (
            Cause(
                "The server's workers are all busy with something slow.",
                "`udsproxy state PATH` shows what each waits for.",
                "Make that faster, or bound it.",
            ),
            Cause(
                "maxconn of the server line is lower than the server has workers.",
                "The last number in front of the request is how many waited in that queue.",
                "Raise maxconn to the number of workers, or timeout queue.",
            ),
        ),
        pattern=r"^(?-i:[sS]Q)[A-Z-]{0,2}$|^HAProxy: (?-i:sQ) in the",
        programs=("haproxy",),
    ),
    Symptom(
        "HAProxy: CD in the termination state",
        "The visitor's own connection to HAProxy ended early: it left, or its network failed. The socket to "
        "the server has no part in it.",
        (
            Cause(
                "The visitor closed the page, or its network failed. That is common, and no fault.",
                "Single lines, from many addresses.",
                "Nothing. Many at once, after the same time: find what makes the answers late (`udsproxy tap "
                "PATH`).",
            ),
        ),
        pattern=r"^(?-i:[cC][HDRQC])[A-Z-]{0,2}$|^HAProxy: (?-i:CD) in the",
        programs=("haproxy",),
    ),
    Symptom(
        "HAProxy: backend has no server available",
        "All servers of the backend are down for HAProxy; clients get 503. Why is in the lines before: `Server "
        "... is DOWN, reason: ...`.",
        (LINE_BEFORE,),
        pattern=r"\bhas no server available|^HAProxy: backend has no server",
        programs=("haproxy",),
    ),
    Symptom(
        "HAProxy: Layer4 timeout, Layer7 timeout",
        "HAProxy's check was not answered in time (timeout check, or inter): the server is counted as down.",
        (
            Cause(
                "All workers are busy with something slow, and the check waits in the accept queue.",
                "`udsproxy state PATH` shows the queue, and what each worker waits for.",
                "Make that faster, or bound it; a longer timeout check.",
            ),
        ),
        pattern=r"\blayer[467] timeout",
        programs=("haproxy",),
    ),
    Symptom(
        "HAProxy: process FD limit",
        "HAProxy has no descriptor left (as EMFILE): it accepts nobody until one is free.",
        (
            Cause(
                "maxconn is larger than the limit of open files allows, or ulimit-n is set too low.",
                "`grep 'open files' /proc/PID/limits` against `ls /proc/PID/fd | wc -l`.",
                "Leave ulimit-n out, raise LimitNOFILE= of the unit, or lower maxconn.",
            ),
        ),
        pattern=r"reached process FD limit|^HAProxy: process FD limit",
        programs=("haproxy",),
    ),
)
