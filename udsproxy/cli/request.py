"""``udsproxy request``: send FastCGI requests, one or a load."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated

import trio
from cyclopts import Parameter

from udsproxy.cli import people
from udsproxy.cli.arguments import LOAD, REQUEST, FileName, option
from udsproxy.cli.common import DONE, FAILED, USAGE, Failure, endpoint_argument
from udsproxy.endpoints import Endpoint
from udsproxy.events import printable
from udsproxy.lab import requester
from udsproxy.lab.requester import Answer, Load
from udsproxy.protocols.fastcgi import PROTOCOL_STATUS_NAMES
from udsproxy.sinks.text import duration, size


def request(
    socket: Annotated[FileName, Parameter(name="SOCKET")],
    /,
    *,
    script: Annotated[str, option(REQUEST, "SCRIPT")] = "/",
    root: Annotated[FileName, option(REQUEST, "DIRECTORY", show_default=False)] = "",
    method: Annotated[str | None, option(REQUEST, "METHOD")] = None,
    param: Annotated[tuple[str, ...], option(REQUEST, "NAME=VALUE", show_default=False)] = (),
    body: Annotated[FileName | None, option(REQUEST, allow_leading_hyphen=True)] = None,
    requests: Annotated[int, option(LOAD, "N", alias="-n")] = 1,
    concurrency: Annotated[int, option(LOAD, "N", alias="-c")] = 1,
) -> int:
    """Send a FastCGI request and print the answer, or send many and print a summary.

    Parameters
    ----------
    socket
        The server's socket.
    script
        The request's SCRIPT_NAME; a query may follow after a question mark.
    root
        This directory and the script make SCRIPT_FILENAME, the file that php-fpm runs.
    method
        The request's method. Default: POST with --body, GET without.
    param
        One more FastCGI parameter. May be given several times.
    body
        Send this file as the body of the request; - is standard input.
    requests
        How many requests to send.
    concurrency
        How many of them to send at the same time.
    """
    endpoint = endpoint_argument(socket)
    pairs = [each.partition("=") for each in param]
    if not all(equals and name for name, equals, _ in pairs):
        raise Failure(USAGE, "--param takes NAME=VALUE")
    if requests < 1 or concurrency < 1:
        raise Failure(USAGE, "-n and -c need at least 1")
    content = _read(body)
    extra = {name: value for name, _, value in pairs}
    params = requester.make_params(script, root=root, method=method, body_bytes=len(content), extra=extra)
    if requests > 1:
        return _print_load(trio.run(_load, endpoint, params, content, requests, concurrency))
    try:
        answer = trio.run(requester.ask, endpoint, params, content)
    except requester.RequestFailed as failure:
        raise Failure(FAILED, f"{endpoint}: {failure}") from None
    _print_answer(answer)
    return DONE


def _read(body: str | None) -> bytes:
    if body is None:
        return b""
    if body == "-":
        return people.read_input()
    try:
        with open(body, "rb") as file:
            return file.read()
    except OSError as error:
        raise Failure(FAILED, f"cannot read {body}: {error.strerror}") from None


async def _load(
    endpoint: Endpoint, params: dict[bytes, bytes], body: bytes, requests: int, concurrency: int
) -> Load:
    return await requester.load(endpoint, params, body, requests=requests, concurrency=concurrency)


def _print_answer(answer: Answer) -> None:
    """As it came, for a program; on a terminal without what could drive it."""
    for stream, data in ((sys.stdout, answer.stdout), (sys.stderr, answer.stderr)):
        if stream.isatty():
            data = re.sub(rb"[^\n\t\r]+", lambda run: printable(run[0]).encode(), data).replace(b"\r\n", b"\n")
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    status = PROTOCOL_STATUS_NAMES.get(answer.protocol_status, str(answer.protocol_status))
    people.note(
        f"{os.linesep if answer.stderr else ''}status {answer.status}, {status}, {size(len(answer.stdout))};"
        f" connected in {duration(answer.connect_s)}, first byte after {duration(answer.ttfb_s)},"
        f" all after {duration(answer.total_s)}"
    )


def _print_load(load: Load) -> int:
    answered, failed = sum(load.statuses.values()), sum(load.failures.values())
    people.tell(
        f"{answered + failed} requests in {duration(load.total_s)}, {answered / load.total_s:.0f} answers/s"
    )
    for status, count in sorted(load.statuses.items()):
        people.tell(f"  {count:>7}  status {status}")
    for failure, count in load.failures.most_common():
        people.tell(f"  {count:>7}  {printable(failure)}")
    if answered:
        figures = ", ".join(f"{p}% {duration(load.percentile(p))}" for p in (50, 90, 99))
        people.tell(f"  latency: {figures}, longest {duration(load.percentile(100))}")
    return FAILED if failed else DONE
