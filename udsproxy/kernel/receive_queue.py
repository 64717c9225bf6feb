"""What waits in the receive queue of a connected Unix stream socket, or in its peer's, without taking it out.

Rule: nothing here takes anything out.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import fcntl
import mmap
import socket
import struct
import termios

_INT = struct.Struct("i")
_NONE = bytes(_INT.size)
_SIOCATMARK = 0x8905
_SOL_SOCKET, _SO_PEEK_OFF = int(socket.SOL_SOCKET), 42
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

_page = mmap.mmap(-1, mmap.PAGESIZE)
_forbidden = ctypes.c_char.from_buffer(_page)
ctypes.CDLL(None).mprotect(ctypes.c_void_p(ctypes.addressof(_forbidden)), mmap.PAGESIZE, 0)


def waiting(sock: _socket.socket) -> int:
    """How many bytes are there (SIOCINQ: net/unix/af_unix.c, unix_inq_len)?"""
    found: int = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.FIONREAD, _NONE))[0]
    return found


def unread(sock: _socket.socket) -> bool:
    """Is there something that we sent and the peer has not read (SIOCOUTQ: net/unix/af_unix.c, unix_outq_len)?"""
    return fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, _NONE) != _NONE


def is_at_mark(sock: _socket.socket) -> bool:
    """Is the next byte the urgent one (SIOCATMARK)? Raises OSError, where the kernel has no MSG_OOB."""
    return bool(_INT.unpack(fcntl.ioctl(sock.fileno(), _SIOCATMARK, _NONE))[0])


def knows_marks() -> bool:
    """Has the kernel urgent bytes on Unix sockets (CONFIG_AF_UNIX_OOB)?"""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            is_at_mark(sock)
        except OSError:
            return False
    return True


def set_peek_offset(sock: _socket.socket, nbytes: int) -> None:
    """Looks begin behind so many bytes, and each where the one before has ended (SO_PEEK_OFF, socket(7)); -1: each
    at the head of the queue. Raises OSError."""
    sock.setsockopt(_SOL_SOCKET, _SO_PEEK_OFF, nbytes)


def bytes_before_descriptors(sock: _socket.socket, view: memoryview) -> int:
    """How many bytes come before the message that descriptors come with (SCM_RIGHTS), which there is. Looks begin
    at the head of the queue after that.

    ``view``: room for all that the sender can have sent. A read ends
    with that message, and joins it with what is before. To tell them apart, it is read into memory whose last byte
    cannot be written: the kernel counts whole messages, up to the one that does not fit
    (net/unix/af_unix.c, unix_stream_read_generic).

    Raises BlockingIOError, OSError.
    """
    set_peek_offset(sock, 0)
    try:
        nbytes, _, _, _ = sock.recvmsg_into([view], 0, _PEEK)
        if nbytes < 2:
            return 0
        set_peek_offset(sock, 0)
        return sock.recvmsg_into([view[: nbytes - 1], _forbidden], 0, _PEEK)[0]
    except OSError as error:
        if error.errno == errno.EFAULT:
            return 0
        raise
    finally:
        set_peek_offset(sock, 0)
