"""``--log console``: for people, a line an exchange, aligned.

Rules: what a reader compares stands in columns; what has any length (URI, error text) comes last. Colour only
says again what the words say. Nothing that a peer sent gets here unescaped (events.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from udsproxy.events import (
    Accepted,
    Close,
    Data,
    DecodeError,
    Dropped,
    Event,
    Fault,
    Incident,
    Listening,
    Message,
    Open,
    ProxyError,
    Queue,
    Request,
    Slow,
    Summary,
    UpstreamError,
    pid_text,
)
from udsproxy.sinks.text import WallClock, duration, hexdump_lines, size

_RED, _GREEN, _YELLOW, _CYAN, _DIM, _BOLD = "31", "32", "33", "36", "2", "1"
_ARROW = {"c2s": ">", "s2c": "<"}
_HEADING = (
    f"{'TIME':<12} {'CONN':>6} {'METHOD':<7} {'STATUS':<6}"
    f" {'TTFB':>8} {'TOTAL':>8} {'SENT':>9} {'RECEIVED':>9}  URI"
)
_INDENT = " " * 20
_WAIT_SHOWN_S = 0.005
"""A wait in the accept queue that is worth a word at the end of a request's line."""


class ConsoleRenderer:
    """See `udsproxy.sinks.sink.Renderer`."""

    def __init__(
        self, clock: WallClock, *, color: bool, verbosity: int, hexdump: int, several: bool = False
    ) -> None:
        """``several``: there are several proxies, so that each line needs to name its own."""
        self._clock = clock
        self._color = color
        self._verbosity = verbosity
        self._hexdump = hexdump
        self._several = several
        self._headed = False

    def render(self, event: Event) -> bytes | Iterator[bytes] | None:
        if isinstance(event, Data):
            return self._data(event)
        text = self._text(event)
        return None if text is None else f"{text}\n".encode("utf-8", "backslashreplace")

    def _text(self, event: Event) -> str | None:
        if isinstance(event, Request):
            return self._request(event)
        if isinstance(event, Close):
            return self._close(event)
        if isinstance(event, Message):
            return self._message(event)
        if isinstance(event, Open):
            return self._open(event) if self._verbosity else None
        if isinstance(event, Accepted):
            return self._accepted(event) if self._verbosity else None
        if isinstance(event, Listening):
            return self._listening(event)
        if isinstance(event, UpstreamError):
            return self._trouble(event, f"upstream: {event.op}() failed: {event.message} ({event.errno})")
        if isinstance(event, Queue):
            return self._queue(event)
        if isinstance(event, Slow):
            return self._slow(event)
        if isinstance(event, Incident):
            return self._incident(event)
        if isinstance(event, Fault):
            if event.conn is not None and not self._verbosity:
                return None  # the exchange, or the connection's end, tells of it
            name = event.kind if event.rule == event.kind else f"{event.rule} ({event.kind})"
            return f"{self._start(event)} {self._paint(f'fault {name}', _YELLOW)}: {event.detail}"
        if isinstance(event, DecodeError):
            where = f"{_side(event.direction)}'s byte {event.offset}"
            return self._trouble(event, f"not {event.protocol} from {where} on: {event.reason}")
        if isinstance(event, ProxyError):
            hint = f"; {event.hint}" if event.hint else ""
            return self._trouble(event, f"udsproxy: {event.op}() failed: {event.message} ({event.errno}){hint}")
        if isinstance(event, Dropped):
            nbytes = f", {size(event.nbytes)} of traffic" if event.nbytes else ""
            return self._trouble(
                event, f"not shown: {event.count} events{nbytes}: {event.observer} could not keep up"
            )
        if isinstance(event, Summary):
            return self._summary(event)
        return None

    def _paint(self, text: str, *codes: str) -> str:
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self._color and codes else text

    def _start(self, event: Event) -> str:
        conn = f"#{event.conn}" if event.conn is not None else ""
        start = f"{self._paint(self._clock.time_of_day(event.at), _DIM)} {conn:>6}"
        return f"{start} {self._paint(event.proxy, _CYAN)}" if self._several else start

    def _request(self, event: Request) -> str:
        status = str(event.status) if event.status is not None else "-"
        bad = event.incomplete is not None or event.status is None or event.status >= 500
        color = _RED if bad else _YELLOW if event.status is not None and event.status >= 400 else _GREEN
        line = (
            f"{self._heading()}{self._start(event)} {event.method or '-':<7} {self._paint(f'{status:<6}', color)}"
            f" {'-' if event.ttfb_s is None else duration(event.ttfb_s):>8} {duration(event.total_s):>8}"
            f" {size(event.c2s_bytes):>9} {size(event.s2c_bytes):>9}  {event.uri or '-'}"
        )
        if event.incomplete is not None:
            line += "  " + self._paint(f"incomplete: {event.incomplete}", _RED)
        elif event.protocol_status not in (None, "REQUEST_COMPLETE"):
            line += "  " + self._paint(f"{event.protocol_status}", _RED)
        if event.faults:
            line += "  " + self._paint(f"fault: {', '.join(event.faults)}", _YELLOW)
        if event.app_status:
            line += f"  app status {event.app_status}"
        if event.accept_wait_s is not None and event.accept_wait_s >= _WAIT_SHOWN_S:
            line += "  " + self._paint(f"after {duration(event.accept_wait_s)} in the queue", _YELLOW)
        if event.unseen:
            line += "  " + self._paint(event.unseen, _DIM)
        if event.stderr:
            line += f"\n{_INDENT}{self._paint('stderr', _YELLOW)} {event.stderr}"
        return line

    def _accepted(self, event: Accepted) -> str:
        by, who = "the upstream", event.worker
        if who is not None:
            by = f"{who.comm or '?'} (pid {pid_text(who.pid, who.inner_pid)})"
        return f"{self._start(event)} accepted by {by} after {duration(event.accept_wait_s)}"

    def _slow(self, event: Slow) -> str:
        age = duration(event.snapshot.at_s)
        since = event.snapshot.doing.for_s if event.snapshot.doing is not None else None
        so_long = f" for {duration(since)} or more" if since else ""
        what = "" if event.request is None else f"{event.method or '-'} {event.uri or '-'}  "
        line = f"{self._start(event)} {self._paint(f'slow {age}', _YELLOW)} {what}{event.snapshot.text}{so_long}"
        stack = event.snapshot.doing.stack if event.snapshot.doing is not None else None
        if stack and self._verbosity:
            line += f"\n{_INDENT}kernel: {' < '.join(stack)}"
        return line

    def _incident(self, event: Incident) -> str:
        what = self._paint("incident" if event.phase == "open" else "incident over", _RED, _BOLD)
        lines = [f"{self._start(event)} {what}: {event.what}"]
        lines += [f"{_INDENT}{each.workers:>5} × {each.doing}" for each in event.waiting_on or ()]
        lines += [
            f"{_INDENT}{load.count:>5} × {load.script}, the oldest {duration(load.oldest_s)}"
            for load in event.in_flight or ()
        ]
        if event.unseen:
            lines.append(f"{_INDENT}{self._paint(event.unseen, _DIM)}")
        return "\n".join(lines)

    def _heading(self) -> str:
        """The names of the columns, once, before the first exchange."""
        if self._headed:
            return ""
        self._headed = True
        return self._paint(_HEADING, _BOLD) + "\n"

    def _close(self, event: Close) -> str | None:
        """At -v always; else only for a connection that no exchange has told of."""
        if event.requests and not self._verbosity:
            return None
        errno = f", {event.errno}" if event.errno else ""
        if event.faults:
            errno += f"; fault: {', '.join(event.faults)}"
        if self._verbosity:
            through = f"{size(event.c2s_bytes)} sent, {size(event.s2c_bytes)} received, {duration(event.total_s)}"
            return f"{self._start(event)} closed by {event.by}{errno}; {through}"
        return (
            f"{self._heading()}{self._start(event)} {event.protocol or 'raw':<7} {'':<6} {'':>8}"
            f" {duration(event.total_s):>8} {size(event.c2s_bytes):>9} {size(event.s2c_bytes):>9}"
            f"  closed by {event.by}{errno}"
        )

    def _open(self, event: Open) -> str:
        who, client = event.client, ""
        if who is not None:
            pid = pid_text(who.pid, who.inner_pid)
            client = f" by {who.comm or '?'} (pid {pid}, uid {who.uid}, gid {who.gid})"
        took = f"; upstream connected in {duration(event.connect_s)}" if event.connect_s is not None else ""
        return f"{self._start(event)} opened{client}{took}"

    def _message(self, event: Message) -> str:
        arrow = self._paint(_ARROW[event.direction], _CYAN)
        fields = "".join(
            f"\n{_INDENT}    {name}={value}" for name, value in event.fields.items() if name != "request"
        )
        request = event.fields.get("request")
        of = f" of request {request}" if request is not None else ""
        short = len(event.fields) <= 4
        if short:
            fields = "".join(f" {name}={value}" for name, value in event.fields.items() if name != "request")
        return f"{self._start(event)} {arrow} {event.kind}{of}, {size(event.nbytes)}{fields}"

    def _data(self, event: Data) -> Iterator[bytes]:
        arrow = self._paint(_ARROW[event.direction], _CYAN)
        yield f"{self._start(event)} {arrow} {len(event.data)} bytes from {event.offset}\n".encode()
        for line in hexdump_lines(event.data, self._hexdump):
            yield f"{_INDENT}{line}\n".encode()

    def _listening(self, event: Listening) -> str:
        rights = f" (mode {event.mode}, {event.owner})" if event.mode else ""
        type_ = f", {event.type}" if event.type else ""
        where = f"on {event.listen}{rights} for {event.upstream}"
        if event.listen == event.upstream:
            where = f"in place of {event.listen}{rights}"
        return f"{self._start(event)} {self._paint('listening', _BOLD)} {where}{type_}"

    def _queue(self, event: Queue) -> str:
        full = event.queue > event.backlog
        what = self._paint("queue full", _RED) if full else "queue no longer full"
        refused = "; the next client gets EAGAIN" if full else ""
        return (
            f"{self._start(event)} {what}: {event.queue} of {event.backlog + 1}, {event.active} connected{refused}"
        )

    def _trouble(self, event: Event, text: str) -> str:
        return f"{self._start(event)} {self._paint(text, _RED)}"

    def _summary(self, event: Summary) -> str:
        return f"{self._start(event)} {self._paint('seen', _BOLD)} {summary_text(event)}"


def summary_text(event: Summary) -> str:
    """What was seen in all, in a line."""
    parts = [f"{_count(event.requests, 'request')} in {_count(event.connections, 'connection')}"]
    for count, what in (
        (event.incomplete, "incomplete request"),
        (event.upstream_errors, "upstream error"),
        (event.decode_errors, "decode error"),
        (event.dropped, "dropped event"),
    ):
        if count:
            parts.append(_count(count, what))
    parts.append(f"{size(event.c2s_bytes)} sent, {size(event.s2c_bytes)} received in {duration(event.total_s)}")
    return "; ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _side(direction: str) -> str:
    return "client" if direction == "c2s" else "upstream"
