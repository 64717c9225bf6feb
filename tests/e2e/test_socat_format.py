"""``--log socat`` and the real ``socat -v``, side by side on the same bytes.

Rule: what may differ is said in `ours_as_socats`, and nothing else may.
"""

from __future__ import annotations

import os
import random
import re
import socket

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.tools import EchoServer, connect, program, read, receive_all, receive_exactly, until, with_output
from tests.stage import Stage

ALL_BYTES = bytes(range(256))

# Each chunk is sent with one call and comes back before the next is sent. Up to 64 KiB such a chunk is one piece on
# an AF_UNIX stream, and so one read: both programs see the same pieces.
CONVERSATIONS = {
    "all byte values": [ALL_BYTES, ALL_BYTES[::-1], ALL_BYTES + b"\n"],
    "each byte alone": [bytes((byte,)) for byte in range(256)],
    "line ends": [b"\n", b"\r\n", b"\n\n\n", b"a\nb", b"a\nb\n", b"\r", b"\\n", b"\n\\"],
    "tabs and escapes": [b"\t\v\f\a\b\x1b\0", b"\\\\", b"'\"`$", b"\x7f\x80\xff", "grün, 日本".encode()],
    "like a heading": [b"> 2026/11/23 06:10:04.718335  length=1 from=0 to=0\n", b"< ", b">"],
    # (More than one buffer of the kernel holds, some 48 KiB, may be read in two parts by either.)
    "long": [random.Random(1).randbytes(30_000), b"x" * 30_000 + b"\n", ALL_BYTES * 100, b"short"],
}

_TIME = rb"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d+"
_OUR_HEADING = re.compile(rb"([<>] " + _TIME + rb"  length=\d+ from=\d+ to=\d+) conn=1\n")


def without_times(text: bytes) -> bytes:
    return re.sub(_TIME, b"TIME", text)


def ours_as_socats(text: bytes, chunks: list[bytes]) -> bytes:
    """Our log as socat would have written it: no ``conn=``, and no line end but the data's own."""
    start, *pieces = _OUR_HEADING.split(text)
    assert start == b""
    result = b""
    for heading, shown, data in zip(pieces[::2], pieces[1::2], chunks, strict=True):
        result += heading + b"\n" + (shown if data.endswith(b"\n") else shown.removesuffix(b"\n"))
    return result


def listens(path: str) -> bool:
    """Has somebody called listen() there? (proc(5): __SO_ACCEPTCON)"""
    return any(
        line.split()[3] == "00010000" for line in read("/proc/net/unix").splitlines() if line.endswith(f" {path}")
    )


def converse(path: str, chunks: list[bytes]) -> None:
    """Send each chunk and wait for its echo."""
    with connect(path) as sock:
        for chunk in chunks:
            assert sock.send(chunk) == len(chunk)
            assert receive_exactly(sock, len(chunk)) == chunk
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_our_log_is_what_socat_prints(stage: Stage, start_proxy: StartProxy, name: str) -> None:
    """For the same conversation --log socat writes what socat -v prints, to the byte: directions, lengths, offsets,
    and the text; but for the time, our conn=N, and a line end after data that has none."""
    chunks = CONVERSATIONS[name]
    with EchoServer(stage.path("up.sock")):
        listen = f"UNIX-LISTEN:{stage.path('socat.sock')}"
        argv = [program("socat"), "-b", "65536", "-v", listen, f"UNIX-CONNECT:{stage.path('up.sock')}"]
        real = stage.spawn("socat", argv, stage.path("socat.out"))
        # (Not by connecting: it takes one connection.)
        until(lambda: listens(stage.path("socat.sock")), "socat to listen")
        converse(stage.path("socat.sock"), chunks)
        assert real.wait(30) == 0

        wrap = with_output(stage.path("ours.out"))
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), log=["--log", "socat"], wrap=wrap)
        until(lambda: os.path.exists(proxy.socket), "the proxy to listen")
        converse(proxy.socket, chunks)
        assert proxy.stop() == 0

    with open(stage.path("socat.out"), "rb") as file:
        theirs = file.read()
    with open(stage.path("ours.out"), "rb") as file:
        ours = file.read()
    there_and_back = [chunk for chunk in chunks for _ in range(2)]
    assert without_times(ours_as_socats(ours, there_and_back)) == without_times(theirs)
