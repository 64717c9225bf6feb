"""What can be asked of a running process, and how it answers.

==========================  ====================================================================
``GET /proxies``            the proxies (`udsproxy.proxy.server.ProxyState`)
``GET /connections``        what is open (`udsproxy.proxy.connection.ConnectionState`)
``GET /counters``           what was seen so far (`udsproxy.events.Summary`)
``GET /faults``             the rules (`udsproxy.proxy.running_faults.FaultState`)
``POST /faults``            add: ``{"fault": "latency=250ms if script=/slow.php"}``, a list of such, or a
                            rule as ``{"rule": {...}}``; for one proxy with ``"proxy": "NAME"``
``DELETE /faults``          remove all
``DELETE /faults/NAME``     remove this one
``PATCH /faults/NAME``      ``{"enabled": false}``: keep it, but switched off
==========================  ====================================================================

``?proxy=NAME`` asks about one proxy. What cannot be done is answered with ``{"error": "one line"}``.

Rules: nothing here waits, or does any I/O; a change is made as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

import msgspec

from udsproxy.events import printable
from udsproxy.faults.rules import Rule
from udsproxy.faults.spelling import parse_rules
from udsproxy.proxy.running_faults import NoSuch
from udsproxy.proxy.server import Server
from udsproxy.units import ConfigError


class _Add(msgspec.Struct, forbid_unknown_fields=True):
    fault: str | list[str] | None = None
    rule: Rule | None = None
    proxy: str | None = None


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool


class Request(msgspec.Struct, frozen=True):
    """An HTTP request."""

    method: str
    target: str
    """As it was sent: path and query, percent-encoded."""
    body: bytes = b""

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def name(self) -> str:
        """The last part of ``/faults/NAME``."""
        return self.path.removeprefix(_NAMED)

    @property
    def proxy(self) -> str | None:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True)).get("proxy")


_NAMED = "/faults/"
"""What begins so names a fault: a name may have a slash in it."""


def answer(server: Server, request: Request) -> tuple[int, object]:
    """The status and what is said, for JSON. ``server`` has started."""
    methods = _ROUTES.get(_NAMED if request.path.startswith(_NAMED) else request.path, {})
    ask = methods.get(request.method)
    try:
        if ask is not None:
            return HTTPStatus.OK, ask(server, request)
    except NoSuch as error:
        return HTTPStatus.NOT_FOUND, error_of(str(error))
    except (ConfigError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return HTTPStatus.BAD_REQUEST, error_of(str(error))
    status = HTTPStatus.METHOD_NOT_ALLOWED if methods else HTTPStatus.NOT_FOUND
    return status, error_of(f"{request.method} {request.path}: {status.phrase}")


def error_of(line: str) -> dict[str, str]:
    """What is answered to something that cannot be done."""
    return {"error": printable(line)}


def _proxies(server: Server, _: Request) -> object:
    return server.states()


def _connections(server: Server, request: Request) -> object:
    return [state for state in server.open_connections() if request.proxy in (None, state.proxy)]


def _counters(server: Server, _: Request) -> object:
    seen = msgspec.structs.asdict(server.counters())
    return {name: value for name, value in seen.items() if name not in ("at", "proxy", "conn")}


def _faults(server: Server, request: Request) -> object:
    return server.faults.states(request.proxy)


def _add(server: Server, request: Request) -> object:
    asked = msgspec.json.decode(request.body, type=_Add)
    if (not asked.fault) == (asked.rule is None):
        raise ConfigError('write {"fault": "latency=250ms"}, or {"rule": {...}}')
    texts = [asked.fault] if isinstance(asked.fault, str) else asked.fault or []
    rules = [asked.rule] if asked.rule is not None else [rule for text in texts for rule in parse_rules(text)]
    return server.faults.add(rules, asked.proxy)


def _clear(server: Server, request: Request) -> object:
    return {"removed": server.faults.clear(request.proxy)}


def _remove(server: Server, request: Request) -> object:
    return {"removed": server.faults.remove(request.name, request.proxy)}


def _change(server: Server, request: Request) -> object:
    asked = msgspec.json.decode(request.body, type=_Change)
    return {"changed": server.faults.enable(request.name, request.proxy, on=asked.enabled)}


_ROUTES: dict[str, dict[str, Callable[[Server, Request], object]]] = {
    "/proxies": {"GET": _proxies},
    "/connections": {"GET": _connections},
    "/counters": {"GET": _counters},
    "/faults": {"GET": _faults, "POST": _add, "DELETE": _clear},
    _NAMED: {"DELETE": _remove, "PATCH": _change},
}
