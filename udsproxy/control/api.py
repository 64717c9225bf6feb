"""What can be asked of a running process, and how it answers.

==========================  ====================================================================
``GET /proxies``            the proxies (`udsproxy.proxy.server.ProxyState`)
``GET /connections``        what is open (`udsproxy.proxy.connection.ConnectionState`)
``GET /counters``           what was seen so far (`udsproxy.events.Summary`)
``GET /faults``             the rules (`udsproxy.proxy.running_faults.FaultState`)
``POST /faults``            add: ``{"fault": "latency=250ms if script=/slow.php"}``, a list of such, or a
                            rule as ``{"rule": {...}}``; for one proxy with ``"proxy": "NAME"``
``DELETE /faults``          take all away
``DELETE /faults/NAME``     take this one away
``PATCH /faults/NAME``      ``{"enabled": false}``: keep it, out of force
==========================  ====================================================================

``?proxy=NAME`` asks of one proxy. What cannot be done is answered with ``{"error": "one line"}``.

Rules: a request is read up to `MOST_BODY` bytes; a change is whole or not at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from udsproxy.events import printable
from udsproxy.faults.rules import Rule
from udsproxy.faults.spelling import parse_rules
from udsproxy.proxy.running_faults import NoSuch
from udsproxy.proxy.server import Server
from udsproxy.units import ConfigError

MOST_BODY = 16 * 1024

_T = TypeVar("_T")


class _Add(msgspec.Struct, forbid_unknown_fields=True):
    fault: str | list[str] | None = None
    rule: Rule | None = None
    proxy: str | None = None


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool


class _Error(Exception):
    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def make_app(server: Server) -> Starlette:
    """The application (ASGI), for a server that has started."""

    async def proxies(_: Request) -> object:
        return server.states()

    async def connections(request: Request) -> object:
        wanted = request.query_params.get("proxy")
        return [state for state in server.open_connections() if wanted in (None, state.proxy)]

    async def counters(_: Request) -> object:
        seen = msgspec.structs.asdict(server.counters())
        return {name: value for name, value in seen.items() if name not in ("at", "proxy", "conn")}

    async def faults(request: Request) -> object:
        wanted = request.query_params.get("proxy")
        return server.faults.states(wanted)

    async def add(request: Request) -> object:
        asked = await _body(request, _Add)
        if (not asked.fault) == (asked.rule is None):
            raise _Error(400, 'write {"fault": "latency=250ms"}, or {"rule": {...}}')
        texts = [asked.fault] if isinstance(asked.fault, str) else asked.fault or []
        rules = [asked.rule] if asked.rule is not None else [rule for text in texts for rule in parse_rules(text)]
        return server.faults.add(rules, asked.proxy)

    async def clear(request: Request) -> object:
        return {"removed": server.faults.clear(request.query_params.get("proxy"))}

    async def remove(request: Request) -> object:
        return {"removed": server.faults.remove(request.path_params["name"], request.query_params.get("proxy"))}

    async def change(request: Request) -> object:
        asked = await _body(request, _Change)
        name, proxy = request.path_params["name"], request.query_params.get("proxy")
        return {"changed": server.faults.enable(name, proxy, on=asked.enabled)}

    routes = [
        Route("/proxies", _answering(proxies)),
        Route("/connections", _answering(connections)),
        Route("/counters", _answering(counters)),
        Route("/faults", _answering(faults)),
        Route("/faults", _answering(add), methods=["POST"]),
        Route("/faults", _answering(clear), methods=["DELETE"]),
        Route("/faults/{name:path}", _answering(remove), methods=["DELETE"]),
        Route("/faults/{name:path}", _answering(change), methods=["PATCH"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})


def _answering(ask: Callable[[Request], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return _json(200, await ask(request))
        except _Error as error:
            return _json(error.status, {"error": str(error)})
        except NoSuch as error:
            return _json(404, {"error": str(error)})
        except (ConfigError, msgspec.DecodeError, UnicodeDecodeError) as error:
            return _json(400, {"error": printable(str(error))})

    return answer


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(error.status_code, {"error": f"{request.method} {printable(request.url.path)}: {error.detail}"})


async def _body(request: Request, wanted: type[_T]) -> _T:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise _Error(413, f"a request of more than {MOST_BODY} bytes")
    return msgspec.json.decode(body, type=wanted)


def _json(status: int, what: object) -> Response:
    body = msgspec.json.encode(what) + b"\n"
    headers = {"Connection": "close"} if status == 413 else None
    return Response(body, status, headers, media_type="application/json")
