"""The settings of proxies and of their output, and how a file says them (TOML; config/udsproxy.toml has all keys).

Rules: plain values, frozen, checked when they are made; nothing here does I/O. A mistake is a `ConfigError` whose
one line names the setting (in a file, by its path: ``proxy[2].listen``), what was given, and what would do. An
unknown key is a mistake.
"""

from __future__ import annotations

import tomllib
from typing import Any, Literal, TypeVar, get_args

import msgspec

from udsproxy import endpoints
from udsproxy.endpoints import Endpoint, EndpointError, Tcp, UnixPath, same_place
from udsproxy.events import printable
from udsproxy.faults.kinds import Backlog, Deny, Eagain, Missing, Workers
from udsproxy.faults.rules import Rule
from udsproxy.faults.spelling import named_apart, parse_rules
from udsproxy.units import MAX_BACKLOG, ConfigError, hint, parse_duration, parse_size

Decode = Literal["auto", "fastcgi", "raw", "none"]
LogFormat = Literal["console", "json", "socat", "none"]
Color = Literal["auto", "always", "never"]
WhoConnects = Literal["client", "messages", "own"]

MAX_FAULTS = 200
"""For one proxy."""
MIN_LOG_SIZE = 64 * 1024
"""A file has room for a line of any event but those with a long hexdump."""
DEFAULT_LOG_KEEP, MAX_LOG_KEEP = 5, 1000


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One proxy: where clients connect, where we connect, and how."""

    listen: Endpoint
    upstream: Endpoint
    name: str
    decode: Decode = "auto"
    backlog: int | None = None
    """None: as the upstream's, where that can be seen; else as long as the system allows (net.core.somaxconn)."""
    connect_timeout_s: float = 5.0
    """For a TCP upstream; on AF_UNIX connect() never waits."""
    credentials: WhoConnects = "client"
    """As whom we connect to a Unix socket, where we may."""
    slow_s: float | None = 1.0
    """An exchange that takes longer is looked at; None: none is."""
    incident_s: float | None = 0.1
    """The upstream's queue may be not empty for so long before that is an incident; None: there are none."""
    nginx_log: str | None = None
    """nginx's error log: what it says of connect() to this socket is told with incidents."""
    faults: tuple[Rule, ...] = ()
    """Each with a name of its own."""

    @property
    def is_watched(self) -> bool:
        """The upstream's queue and workers are looked at."""
        return self.slow_s is not None or self.incident_s is not None

    def __post_init__(self) -> None:
        if self.backlog is not None and not 0 <= self.backlog <= MAX_BACKLOG:
            raise ConfigError(f"backlog {self.backlog}: a number from 0 to {MAX_BACKLOG} is needed")
        if same_place(self.listen, self.upstream):
            raise ConfigError(f"{self.listen} would forward to itself; LISTEN and UPSTREAM must differ")
        to = self.upstream
        if isinstance(to, UnixPath) and (to.mode, to.owner, to.group) != (None, None, None):
            raise ConfigError(f"upstream {to}: mode, owner and group are for LISTEN")
        if len(self.faults) > MAX_FAULTS:
            raise ConfigError(f"{len(self.faults)} faults: a proxy takes at most {MAX_FAULTS}")
        for rule in self.faults:
            kind = rule.fault.kind
            if not rule.is_for(self.name):
                raise ConfigError(f"fault {kind}: it is for proxy={rule.when['proxy']}, and this is {self.name!r}")
            if isinstance(rule.fault, Missing | Deny) and not isinstance(self.listen, UnixPath):
                raise ConfigError(f"fault {kind}: it is for a socket with a file; {self.listen} has none")
            if isinstance(rule.fault, Backlog | Workers | Eagain) and (
                isinstance(self.listen, Tcp) or isinstance(self.upstream, Tcp)
            ):
                raise ConfigError(f"fault {kind}: it is for Unix sockets, on both sides")
        if self.nginx_log is not None and (self.incident_s is None or isinstance(self.upstream, Tcp)):
            raise ConfigError(
                "nginx's log is read for incidents, at a Unix upstream: it cannot be given where there are none"
            )
        if self.connect_timeout_s <= 0:
            raise ConfigError(f"connect timeout {self.connect_timeout_s:g}: more than 0 is needed")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is written about the traffic, and where."""

    format: LogFormat = "console"
    """What is shown on standard output."""
    file: str | None = None
    """JSON lines are written to this file, too."""
    size: int | None = None
    """The bytes that the file may have before it is rotated; None: any number."""
    keep: int = DEFAULT_LOG_KEEP
    """How many rotated files are kept."""
    verbosity: int = 0
    """0: exchanges; 1: messages too; 2: bytes too."""
    hexdump: int = 256
    """The most bytes of a chunk that a hexdump shows."""
    redact: tuple[str, ...] = ()
    """Parameters whose values are masked besides those that are not known to be public."""
    show: tuple[str, ...] = ()
    """Parameters whose values are shown although they are not known to be public."""
    show_secrets: bool = False
    """Nothing is masked."""
    color: Color = "auto"

    @property
    def shown(self) -> LogFormat:
        """What is shown on standard output. With a file, JSON is written there only: it would be the same lines."""
        return "none" if self.file is not None and self.format == "json" else self.format

    def __post_init__(self) -> None:
        if self.size is not None and self.file is None:
            raise ConfigError(f"a log size of {self.size} bytes: it is for a log file, and there is none")
        if self.size is not None and self.size < MIN_LOG_SIZE:
            raise ConfigError(f"a log size of {self.size} bytes: at least {MIN_LOG_SIZE} are needed")
        if not 1 <= self.keep <= MAX_LOG_KEEP:
            raise ConfigError(f"log files to keep: {self.keep}: a number from 1 to {MAX_LOG_KEEP} is needed")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All of a process."""

    proxies: tuple[ProxyConfig, ...]
    log: LogConfig = LogConfig()
    grace_s: float = 5.0
    """How long open connections may go on once it is to stop."""
    seed: int | None = None
    """Of the faults' chance; None: any."""
    control: str = "auto"
    """The control socket: a path, ``auto`` or ``none``."""


def parse_limit(text: str) -> float | None:
    """Seconds, or ``none``. Raises `ConfigError`."""
    if text == "none":
        return None
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ConfigError(f"{text}: more than 0 is needed, or none")
    return seconds


def parse_backlog(text: str | int) -> int | None:
    """``mirror`` (None), or a number. Raises `ConfigError`."""
    if text == "mirror":
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not mirror or a number") from None


def default_name(listen: Endpoint) -> str:
    """What a proxy is called that was given no name: the last part of where it listens."""
    return printable(str(listen).rpartition("/")[2]) or "proxy"


# --- the file ---


def parse_file(text: str) -> Config:
    """The settings that a TOML file says. Raises `ConfigError`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"it is not TOML: {error}") from None
    file = _Table(data, "")
    grace_s = file.duration("grace", 5.0)
    seed = file.take("seed", int, None)
    control = file.take("control", str, "auto")
    everywhere = _rules_of(file)
    log = _log_of(file.table("log"))
    proxies = tuple(_proxy_of(table, everywhere) for table in file.tables("proxy"))
    for rule in everywhere:
        if proxies and not any(rule.is_for(proxy.name) for proxy in proxies):
            raise ConfigError(f"faults: {rule.fault.kind} is for proxy={rule.when['proxy']}, and there is none")
    file.done()
    if not proxies:
        raise ConfigError("there is no [[proxy]]")
    names = [proxy.name for proxy in proxies]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two proxies are called {twice[0]!r}; give each a name of its own")
    return Config(proxies=proxies, log=log, grace_s=grace_s, seed=seed, control=control)


def _log_of(table: _Table) -> LogConfig:
    settings: dict[str, Any] = {
        "format": table.choice("format", LogFormat, "console"),
        "file": table.take("file", str, None),
        "size": table.size("size", None),
        "keep": table.take("keep", int, DEFAULT_LOG_KEEP),
        "verbosity": table.take("verbose", int, 0),
        "hexdump": table.size("hexdump", 256),
        "redact": tuple(table.texts("redact")),
        "show": tuple(table.texts("show")),
        "show_secrets": table.take("show_secrets", bool, False),
        "color": table.choice("color", Color, "auto"),
    }
    table.done()
    try:
        return LogConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{table.path}: {error}") from None


def _rules_of(table: _Table) -> list[Rule]:
    try:
        return [rule for text in table.texts("faults") for rule in parse_rules(text)]
    except ConfigError as error:
        raise ConfigError(f"{table.at('faults')}: {error}") from None


def _proxy_of(table: _Table, everywhere: list[Rule]) -> ProxyConfig:
    listen, upstream = table.endpoint("listen"), table.endpoint("upstream")
    backlog = table.take("backlog", (str, int), "mirror")
    name = table.take("name", str, None)
    decode = table.choice("decode", Decode, "auto")
    connect_timeout_s = table.duration("connect_timeout", 5.0)
    credentials = table.choice("credentials", WhoConnects, "client")
    slow_s = table.limit("slow", "1s")
    incident_s = table.limit("incident", "100ms")
    nginx_log = table.take("nginx_log", str, None)
    name = printable(name) if name else default_name(listen)
    faults = [*(rule for rule in everywhere if rule.is_for(name)), *_rules_of(table)]
    try:
        config = ProxyConfig(
            listen=listen,
            upstream=upstream,
            name=name,
            decode=decode,
            backlog=parse_backlog(backlog),
            connect_timeout_s=connect_timeout_s,
            credentials=credentials,
            slow_s=slow_s,
            incident_s=incident_s,
            nginx_log=nginx_log,
            faults=tuple(named_apart(faults)),
        )
    except ConfigError as error:
        raise ConfigError(f"{table.path}: {error}") from None
    table.done()
    return config


_T = TypeVar("_T")


class _Table:
    """A table of the file: what is asked for is taken out, and nothing may be left."""

    def __init__(self, data: dict[str, Any], path: str) -> None:
        self._data = dict(data)
        self._known: list[str] = []
        self.path = path

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def take(self, key: str, wanted: type | tuple[type, ...], default: _T) -> Any | _T:
        """Raises `ConfigError`: it is there, and is something else."""
        self._known.append(key)
        if key not in self._data:
            return default
        found = self._data.pop(key)
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            names = " or ".join(_NAMES[kind] for kind in kinds)
            raise ConfigError(f"{self.at(key)} = {found!r}: {names} is needed")
        return found

    def texts(self, key: str) -> list[str]:
        found: list[Any] = self.take(key, list, [])
        if wrong := [each for each in found if not isinstance(each, str)]:
            raise ConfigError(f"{self.at(key)}: {wrong[0]!r} is not text")
        return list(found)

    def choice(self, key: str, choices: Any, default: str) -> Any:
        found = self.take(key, str, default)
        if found not in get_args(choices):
            raise ConfigError(f"{self.at(key)} = {found!r}: choose one of {', '.join(get_args(choices))}")
        return found

    def duration(self, key: str, default: float) -> float:
        found = self.take(key, (str, int, float), default)
        return default if found is default else self._parsed(key, parse_duration, found)

    def limit(self, key: str, default: str) -> float | None:
        found: float | None = self._parsed(key, parse_limit, self.take(key, (str, int, float), default))
        return found

    def size(self, key: str, default: _T) -> int | _T:
        found = self.take(key, (str, int), default)
        return default if found is default else self._parsed(key, parse_size, found)

    def endpoint(self, key: str) -> Endpoint:
        found = self.take(key, str, None)
        if found is None:
            raise ConfigError(f"{self.at(key)} is missing")
        try:
            return endpoints.parse(found)
        except EndpointError as error:
            raise ConfigError(f"{self.at(key)}: {error}") from None

    def _parsed(self, key: str, parse: Any, found: object) -> Any:
        try:
            return parse(str(found))
        except ConfigError as error:
            raise ConfigError(f"{self.at(key)}: {error}") from None

    def table(self, key: str) -> _Table:
        return _Table(self.take(key, dict, {}), self.at(key))

    def tables(self, key: str) -> list[_Table]:
        found: list[Any] = self.take(key, list, [])
        if not all(isinstance(each, dict) for each in found):
            raise ConfigError(f"{self.at(key)}: write [[{key}]] before each")
        return [_Table(each, f"{self.at(key)}[{number}]") for number, each in enumerate(found, 1)]

    def done(self) -> None:
        """Raises `ConfigError`: something is left that nobody asked for."""
        for key in self._data:
            raise ConfigError(f"unknown key {self.at(key)}{hint(key, self._known)}")


_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
