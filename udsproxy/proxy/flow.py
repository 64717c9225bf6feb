"""What the relay moves: flows, and the pairs that they make.

Rule: these are data, and what can be said of one from itself; what happens to them is the relay's
(`udsproxy.proxy.relay`).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from udsproxy.endpoints import Socket
from udsproxy.events import Direction, Side
from udsproxy.kernel.credentials import raw_peer_of
from udsproxy.proxy.cargo import ROOM_FOR_SENDER, Cargo, speaker

MOST_CHARGE = 8 * 1024
"""So much of what was forwarded stays unread: its bytes, and `CHUNK` for each chunk of them."""
CHUNK = 1024
"""About what the kernel charges the sender for a message besides its bytes."""

_SOL_SOCKET, _SO_PASSCRED = int(socket.SOL_SOCKET), int(socket.SO_PASSCRED)

Watch = Callable[[Direction, int, bytes], None]
"""Who is given a copy of what was forwarded: which way, when it was read (ns), the bytes."""

_NOTHING: deque[tuple[memoryview, Cargo | None]] = deque(maxlen=0)
"""The outbox of a flow that never was blocked, which is most of them."""


class Way(Protocol):
    """How the bytes of a flow go, where not as plain ones do: through faults, or as records."""

    def pump(self) -> None:
        """Read and forward."""
        ...

    def release(self, now: int) -> None:
        """Faults have changed: send what is due."""
        ...

    def clear(self) -> None:
        """Nothing more can pass."""
        ...

    def leave(self) -> None:
        """The flow goes another way now, or has ended."""
        ...


class Flow:
    """One direction of one connection: from ``src`` to ``dst``."""

    __slots__ = (
        "armed",
        "charge",
        "detour",
        "direction",
        "done",
        "dst",
        "eof",
        "follows",
        "gone",
        "keeps",
        "looks",
        "most",
        "nbytes",
        "outbox",
        "pair",
        "receive",
        "room",
        "send",
        "sender",
        "src",
        "twin",
        "unread",
        "urgent",
    )  # fmt: skip

    twin: Flow

    def __init__(self, pair: Pair, direction: Direction, src: Socket, dst: Socket) -> None:
        self.pair = pair
        self.direction = direction
        self.src = src
        self.dst = dst
        self.receive = src.recvmsg_into
        self.send: Callable[..., int] = dst.send
        self.detour: Way | None = None
        """Its bytes do not go as plain ones do."""
        self.outbox = _NOTHING
        """What ``dst`` did not take yet, and what goes with it."""
        self.looks = src.family == socket.AF_UNIX
        """It is looked at what comes before that is read."""
        self.keeps = self.looks
        """Something is to be left unread."""
        self.unread = 0
        """So many bytes at the head of ``src``'s receive queue have been forwarded. (Of records: 0 or 1.)"""
        self.follows = False
        """Looks begin behind these. (Until there is a second one that need not be.)"""
        self.charge = 0
        """What they cost the sender, about."""
        self.most = MOST_CHARGE
        """How much that may be."""
        self.room = 0
        """For the credentials that come with each look; 0: none do."""
        self.sender = b""
        """Who wrote what comes now (struct ucred)."""
        self.nbytes = 0
        self.armed = False
        """EPOLLOUT of ``dst`` is asked for."""
        self.urgent = False
        """An urgent byte (MSG_OOB) is on its way."""
        self.gone = False
        """``src``'s peer has closed altogether: it reads nothing more either."""
        self.done = False
        """Nothing more will pass."""
        self.eof = False
        """``src``'s peer has no more to say."""

    @property
    def side(self) -> Side:
        """Whose ``src`` is."""
        return "client" if self.direction == "c2s" else "upstream"

    def ask_who_sends(self) -> None:
        """From now on what comes says who sent it (SO_PASSCRED), and is sent in that name. Raises OSError."""
        self.src.setsockopt(_SOL_SOCKET, _SO_PASSCRED, 1)
        self.room = ROOM_FOR_SENDER

    def ask_no_more(self) -> None:
        """The other way round. Raises OSError."""
        self.src.setsockopt(_SOL_SOCKET, _SO_PASSCRED, 0)
        self.room, self.sender, self.send = 0, b"", self.dst.send

    def speak_as(self, sender: bytes) -> None:
        """What comes now was sent by this one (struct ucred; pid 0: the kernel does not know)."""
        self.sender = sender
        self.send = speaker(self.dst, sender if any(sender[:4]) else raw_peer_of(self.src))


class Pair:
    """A relayed connection: two sockets, and the flows between them. Who owns it says what its end means."""

    __slots__ = ("c2s", "ended", "errno", "first_eof", "left", "lingers", "reset", "s2c", "watch")

    def __init__(self, client: Socket, upstream: Socket, watch: Watch | None = None) -> None:
        c2s = self.c2s = Flow(self, "c2s", client, upstream)
        s2c = self.s2c = Flow(self, "s2c", upstream, client)
        c2s.twin, s2c.twin = s2c, c2s
        self.watch = watch
        self.errno: str | None = None
        self.first_eof: Side | None = None
        """Which side was first to have no more to say."""
        self.left: Side | None = None
        """Who left while the other still had something to say, or to be told."""
        self.ended = False
        self.reset: Side | None = None
        """Who is to get a reset at the end."""
        self.lingers: Side | None = None
        """Who has shut down both ways with bytes unread, and has not closed yet."""

    @property
    def by(self) -> Side:
        """Who ended it: who left; else who was the first to say its last."""
        return self.left or self.first_eof or "proxy"

    def closed(self) -> None:
        """Both sockets are closed; the attributes say how it ended."""
        raise NotImplementedError

    def descriptors_lost(self, why: str) -> None:
        """Descriptors (SCM_RIGHTS) were not passed on, and are closed."""
        raise NotImplementedError


def shutdown(sock: Socket, how: int) -> None:
    """shutdown(2), where the other end has not gone first."""
    try:  # noqa: SIM105 - contextlib.suppress costs more than the call
        sock.shutdown(how)
    except OSError:
        pass  # ENOTCONN: the other end went first
