"""The type of the upstream's socket (SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM), and what that rules out.

Rule: ours has the same.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

from udsproxy import endpoints
from udsproxy.config import ProxyConfig
from udsproxy.endpoints import UnixAbstract, UnixPath
from udsproxy.faults.kinds import FastCGI, Hold, Shut, Stream
from udsproxy.faults.rules import Rule
from udsproxy.kernel.server_diag import ServerDiag
from udsproxy.units import ConfigError

NAMES = {int(socket.SOCK_SEQPACKET): "seqpacket", int(socket.SOCK_DGRAM): "datagram"}
"""What people are told, where it is not a stream."""


def type_of(address: UnixPath | UnixAbstract) -> int | None:
    """The type of the socket that serves there, without a connection to it; None: nobody does, or that cannot be
    told."""
    asked = address.path if isinstance(address, UnixPath) else os.fsencode(address.name)
    with contextlib.suppress(OSError), ServerDiag() as diag:
        if (found := diag.server(asked)) is not None:
            return found.type
    with contextlib.suppress(OSError), endpoints.unix_socket(socket.SOCK_DGRAM) as probe:
        if endpoints.connect(probe, address) == 0:
            return int(socket.SOCK_DGRAM)
    return None


def require_fit(proxy: ProxyConfig, faults: Iterable[Rule], type_: int) -> None:
    """May these faults, and the proxy's backlog, be meant on a socket of this type? Raises `ConfigError`."""
    if type_ == socket.SOCK_DGRAM:
        if proxy.backlog is not None:
            raise ConfigError(
                f"backlog {proxy.backlog}: {proxy.upstream} receives datagrams, and has no accept queue"
            )
        for rule in faults:
            if not isinstance(rule.fault, Shut | Hold):
                raise ConfigError(
                    f"fault {rule.fault.kind}: it is for connections; {proxy.upstream} receives datagrams"
                )
    elif type_ == socket.SOCK_SEQPACKET:
        for rule in faults:
            if isinstance(rule.fault, Stream | FastCGI):
                raise ConfigError(
                    f"fault {rule.fault.kind}: it is for streams; {proxy.upstream} has records (SOCK_SEQPACKET)"
                )
