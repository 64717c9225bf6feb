"""``--log console``: for people, a row for each exchange (rows.py), and a line for everything else.

Rules: times of day are local, everywhere. Colour only repeats what the words say. On a terminal no line is wider
than it; its width is asked for at each event, so that a resized one is followed. Nothing that a peer sent gets here
unescaped (events.py).
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
    is_long_wait,
    pid_text,
)
from udsproxy.layout import shortened
from udsproxy.sinks import rows
from udsproxy.sinks.rows import BOLD, CYAN, DIM, GREEN, RED, YELLOW, Cells, Note
from udsproxy.sinks.script_table import script_table
from udsproxy.sinks.text import WallClock, duration, hexdump_lines, local_time, size
from udsproxy.terminal import Width

_ARROW = {"c2s": ">", "s2c": "<"}
_WAIT_SHOWN_S = 0.005
"""A wait in the accept queue that is worth a word at the end of a request's line."""

_MAX_UNSEEN = 100


class ConsoleRenderer:
    """See `udsproxy.sinks.sink.Renderer`."""

    def __init__(
        self,
        clock: WallClock,
        *,
        color: bool,
        verbosity: int,
        hexdump: int,
        several: bool = False,
        width: Width | None = None,
    ) -> None:
        """``several``: there are several proxies, so that each line needs to name its own. ``width``: of the
        terminal; None: there is none."""
        self._clock = clock
        self._color = color
        self._verbosity = verbosity
        self._hexdump = hexdump
        self._several = several
        self._width = width
        self._layout = rows.layout(None, several=several, color=color)
        self._heading = ""
        """The one that was written last."""
        self._unseen: set[tuple[str, str]] = set()
        """What of incidents cannot be seen, by proxy: it is said once."""

    def render(self, event: Event) -> bytes | Iterator[bytes] | None:
        if self._width is not None and (width := self._width()) != self._layout.width:
            self._layout = rows.layout(width, several=self._several, color=self._color)
        if isinstance(event, Data):
            return self._data(event)
        if isinstance(event, Request):
            text: str | None = self._request(event)
        else:
            text = self._text(event)
            text = text and self._layout.fold(text)
        return None if text is None else f"{self._begin(event)}{text}\n".encode("utf-8", "backslashreplace")

    def _text(self, event: Event) -> str | None:
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
            return f"{self._start(event)} {self._paint(f'fault {name}', YELLOW)}: {event.detail}"
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
        return rows.paint(text, *codes) if self._color and codes else text

    def _shortened(self, uri: str) -> str:
        """One that stands inside a line: at most half a line of a terminal."""
        return shortened(uri, self._layout.width and self._layout.width // 2)

    def _start(self, event: Event) -> str:
        return self._layout.begin(self._clock.time_of_day(event.at), _conn(event), event.proxy)

    def _request(self, event: Request) -> str:
        status = str(event.status) if event.status is not None else "-"
        bad = event.incomplete is not None or event.status is None or event.status >= 500
        color = RED if bad else YELLOW if event.status is not None and event.status >= 400 else GREEN
        row = Cells(
            self._clock.time_of_day(event.at),
            _conn(event),
            event.proxy,
            event.method or "-",
            self._paint(f"{status:<6}", color),
            "-" if event.ttfb_s is None else duration(event.ttfb_s),
            duration(event.total_s),
            size(event.c2s_bytes),
            size(event.s2c_bytes),
        )
        text = self._headed() + self._layout.row(row, event.uri or "-", _notes(event), color=self._color)
        if event.stderr:
            stderr = f"{self._layout.indent}{self._paint('stderr', YELLOW)} {event.stderr}"
            text += f"\n{self._layout.fold(stderr)}"
        return text

    def _headed(self) -> str:
        """The names of the columns: before the first exchange, and again where a resized terminal shows others."""
        if self._heading == self._layout.heading:
            return ""
        self._heading = self._layout.heading
        return self._layout.fold(self._heading) + "\n"

    def _accepted(self, event: Accepted) -> str:
        by, who = "the upstream", event.worker
        if who is not None:
            by = f"{who.comm or '?'} (pid {pid_text(who.pid, who.inner_pid)})"
        return f"{self._start(event)} accepted by {by} after {duration(event.accept_wait_s)}"

    def _slow(self, event: Slow) -> str:
        age = duration(event.snapshot.at_s)
        since = event.snapshot.doing.for_s if event.snapshot.doing is not None else None
        so_long = f" for {duration(since)} or more" if since else ""
        what = ""
        if event.request is not None:
            what = f" {event.method or '-'} {self._shortened(event.uri or '-')}"
        age += _queued(event.snapshot.accept_wait_s, event.snapshot.at_s)
        line = f"{self._start(event)} {self._paint(f'slow {age}', YELLOW)}{what}  {event.snapshot.text}{so_long}"
        stack = event.snapshot.doing.stack if event.snapshot.doing is not None else None
        if stack and self._verbosity:
            line += f"\n{self._layout.indent}kernel: {' < '.join(stack)}"
        return line

    def _incident(self, event: Incident) -> str:
        what = self._paint("incident" if event.phase == "open" else "incident over,", RED, BOLD)
        lines = [f"{self._start(event)} {what} since {local_time(event.since)}: {event.what}"]
        indent = self._layout.indent
        lines += [f"{indent}{each.workers:>5} × {each.doing}" for each in event.waiting_on or ()]
        lines += [
            f"{indent}{load.count:>5} × {self._shortened(load.script)}, the oldest {duration(load.oldest_s)}"
            f"{_queued(load.accept_wait_s, load.oldest_s)}"
            for load in event.in_flight or ()
        ]
        if event.unseen and (event.proxy, event.unseen) not in self._unseen:
            if len(self._unseen) < _MAX_UNSEEN:
                self._unseen.add((event.proxy, event.unseen))
            lines.append(f"{indent}{self._paint(event.unseen, DIM)}")
        return "\n".join(lines)

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
        row = Cells(
            self._clock.time_of_day(event.at),
            _conn(event),
            event.proxy,
            event.protocol or "raw",
            " " * 6,
            "",
            duration(event.total_s),
            size(event.c2s_bytes),
            size(event.s2c_bytes),
        )
        note = (f"closed by {event.by}{errno}", "")
        return self._headed() + self._layout.row(row, "", [note], color=False)

    def _open(self, event: Open) -> str:
        who, client = event.client, ""
        if who is not None:
            pid = pid_text(who.pid, who.inner_pid)
            client = f" by {who.comm or '?'} (pid {pid}, uid {who.uid}, gid {who.gid})"
        took = f"; upstream connected in {duration(event.connect_s)}" if event.connect_s is not None else ""
        return f"{self._start(event)} opened{client}{took}"

    def _message(self, event: Message) -> str:
        arrow = self._paint(_ARROW[event.direction], CYAN)
        fields = "".join(
            f"\n{self._layout.indent}    {name}={value}"
            for name, value in event.fields.items()
            if name != "request"
        )
        request = event.fields.get("request")
        of = f" of request {request}" if request is not None else ""
        short = len(event.fields) <= 4
        if short:
            fields = "".join(f" {name}={value}" for name, value in event.fields.items() if name != "request")
        return f"{self._start(event)} {arrow} {event.kind}{of}, {size(event.nbytes)}{fields}"

    def _data(self, event: Data) -> Iterator[bytes]:
        arrow = self._paint(_ARROW[event.direction], CYAN)
        indent, width = self._layout.indent, self._layout.width
        room = None if width is None else width - len(indent)
        head = f"{self._start(event)} {arrow} {len(event.data)} bytes from {event.offset}"
        yield f"{self._layout.fold(head)}\n".encode("utf-8", "backslashreplace")
        for line in hexdump_lines(event.data, self._hexdump, room):
            yield f"{indent}{line}\n".encode()

    def _listening(self, event: Listening) -> str:
        rights = f" (mode {event.mode}, {event.owner})" if event.mode else ""
        type_ = f", {event.type}" if event.type else ""
        where = f"on {event.listen}{rights} for {event.upstream}"
        if event.listen == event.upstream:
            where = f"in place of {event.listen}{rights}"
        return f"{self._start(event)} {self._paint('listening', BOLD)} {where}{type_}"

    def _queue(self, event: Queue) -> str:
        full = event.queue > event.backlog
        what = self._paint("queue full", RED) if full else "queue no longer full"
        refused = "; the next client gets EAGAIN" if full else ""
        return (
            f"{self._start(event)} {what}: {event.queue} of {event.backlog + 1}, {event.active} connected{refused}"
        )

    def _trouble(self, event: Event, text: str) -> str:
        return f"{self._start(event)} {self._paint(text, RED)}"

    def _summary(self, event: Summary) -> str:
        heading, *rows = script_table(event, self._layout.width) or [""]
        table = [self._paint(heading, BOLD), *rows] if rows else []
        return "\n".join([f"{self._start(event)} {self._paint('seen', BOLD)} {summary_text(event)}", *table])

    def _begin(self, event: Event) -> str:
        """The summary comes after a Ctrl-C, of which the terminal has written ``^C`` where the line begins."""
        return "\r" if isinstance(event, Summary) and self._layout.width is not None else ""


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


def _notes(event: Request) -> list[Note]:
    """What is to be said of an exchange besides its row."""
    notes: list[Note] = []
    if event.incomplete is not None:
        notes.append((f"incomplete: {event.incomplete}", RED))
    elif event.protocol_status not in (None, "REQUEST_COMPLETE"):
        notes.append((f"{event.protocol_status}", RED))
    if event.faults:
        notes.append((f"fault: {', '.join(event.faults)}", YELLOW))
    if event.app_status:
        notes.append((f"app status {event.app_status}", ""))
    # (The wait is known to within some time: it is never told as longer than the request.)
    if event.accept_wait_s is not None and (wait_s := min(event.accept_wait_s, event.total_s)) >= _WAIT_SHOWN_S:
        notes.append((f"after {duration(wait_s)} in the queue", YELLOW))
    if event.unseen:
        notes.append((event.unseen, DIM))
    return notes


def _queued(wait_s: float | None, of_s: float) -> str:
    """`` (5.87 s of it in the queue)``, where that is worth telling."""
    return f" ({duration(wait_s)} of it in the queue)" if wait_s and is_long_wait(wait_s, of_s) else ""


def _conn(event: Event) -> str:
    return f"#{event.conn}" if event.conn is not None else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _side(direction: str) -> str:
    return "client" if direction == "c2s" else "upstream"
