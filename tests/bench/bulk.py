"""The bulk workload's two ends, each a process: ``serve SOCKET`` and ``send SOCKET BYTES``.

A transfer is an 8-byte length (big endian), that many bytes, and one byte back when all have been read.
The answer, not the close, ends it, because not every proxy passes on a half-closed connection. ``send``
prints the seconds from the first byte sent to the answer. Buffers are 256 KiB; the text is printable, so that
a recorder has no reason to treat it in a special way.
"""

import socket
import struct
import sys
import threading
import time

BUFFER = 256 * 1024
LENGTH = struct.Struct("!Q")
DONE = b"!"


def serve(path: str) -> None:
    """Take transfers on a socket for ever, one thread for each connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(128)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_sink, args=(connection,), daemon=True).start()


def _sink(connection: socket.socket) -> None:
    with connection:
        head = connection.recv(LENGTH.size, socket.MSG_WAITALL)
        if len(head) < LENGTH.size:
            return  # someone only tried whether we accept
        if _read(connection, LENGTH.unpack(head)[0]):
            connection.sendall(DONE)


def _read(connection: socket.socket, left: int) -> bool:
    buffer = bytearray(BUFFER)
    while left:
        size = connection.recv_into(buffer, min(left, BUFFER))
        if not size:
            return False
        left -= size
    return True


def send(path: str, left: int) -> float:
    """Make one transfer of `left` bytes; return seconds."""
    block = memoryview((b"0123456789abcdef" * (BUFFER // 16))[:BUFFER])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        started = time.perf_counter()
        connection.sendall(LENGTH.pack(left))
        while left:
            left -= connection.send(block[:left])
        if connection.recv(1) != DONE:
            sys.exit("the transfer was cut short")
        return time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        print(send(sys.argv[2], int(sys.argv[3])))
