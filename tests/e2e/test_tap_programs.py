"""``udsproxy tap`` in front of real servers, and of what is like them: their clients notice nothing, and the
servers see who the clients are.

Rule: as root, clients are another user than the proxy; else all are the same.
"""

from __future__ import annotations

import mmap
import os
import pwd
import re
import signal
import socket
import struct
import subprocess
from typing import NamedTuple, Self

import pytest

from tests.e2e.site import run_nginx
from tests.e2e.tap import StartTap, Tap
from tests.e2e.tools import LIMIT_S, SocketServer, connect, program, read, run, until
from tests.stage import Stage

ROOT = os.geteuid() == 0
OTHER = pwd.getpwnam("nobody") if ROOT else pwd.getpwuid(os.geteuid())


def as_other(name: str) -> list[str]:
    """A command that runs a program as the other user."""
    if not ROOT:
        return [program(name)]
    user = [f"--reuid={OTHER.pw_uid}", f"--regid={OTHER.pw_gid}", "--clear-groups"]
    return [program("setpriv"), *user, "--", program(name)]


def output(argv: list[str]) -> bytes:
    """What a program prints that must succeed."""
    done = run(argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


def await_clients(tap: Tap, count: int) -> None:
    """Until so many connections show, which are all of the other user."""
    clients = [event["client"] for event in tap.wait_for("open", count=count)]
    assert {(client["uid"], client["gid"]) for client in clients} == {(OTHER.pw_uid, OTHER.pw_gid)}


@pytest.fixture(autouse=True)
def _open_to_others(stage: Stage) -> None:
    """Other users may enter the stage."""
    os.chmod(stage.directory, 0o755)


# --- PostgreSQL ---


class Postgres:
    """A new cluster, that belongs to the other user: he alone may connect, by his own name."""

    def __init__(self, stage: Stage) -> None:
        self._directory = stage.path("pg", "run")
        self.socket = os.path.join(self._directory, ".s.PGSQL.5432")
        data = stage.path("pg", "data")
        for each in (data, self._directory):
            os.mkdir(each)
            os.chown(each, OTHER.pw_uid, OTHER.pw_gid)
        auth = ["--auth-local=peer", "--auth-host=reject"]
        output([*as_other("initdb"), "-D", data, *auth, "--no-sync", "--no-locale", "--encoding=UTF8"])
        settings = {"listen_addresses": "", "unix_socket_directories": self._directory, "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        stage.spawn("postgres", [*as_other("postgres"), "-D", data, *options], stage.path("pg", "log"))
        stage.await_socket(self.socket)
        until(lambda: run(self.query("select 1")).returncode == 0, "PostgreSQL to be ready")

    def options(self, user: str = OTHER.pw_name) -> list[str]:
        """Where it is, and as whom to connect."""
        return ["-h", self._directory, "-p", "5432", "-U", user]

    def query(self, sql: str) -> list[str]:
        """A command of the other user."""
        return [*as_other("psql"), *self.options(), "-X", "-A", "-t", "-w", "-c", sql, "postgres"]

    def refusal(self) -> bytes:
        """What psql says to somebody who comes by a name that is not his."""
        user = OTHER.pw_name if ROOT else f"not-{OTHER.pw_name}"
        done = run([program("psql"), *self.options(user), "-X", "-w", "-c", "select 1", "postgres"])
        assert (done.returncode, done.stdout) == (2, b"")
        return done.stderr


@pytest.fixture
def postgres(stage: Stage) -> Postgres:
    """PostgreSQL, which accepts connections."""
    return Postgres(stage)


def test_postgres_knows_its_clients(postgres: Postgres, start_tap: StartTap) -> None:
    """Peer authentication lets in whom it lets in without the tap, and tells anybody else the same."""
    refusal = postgres.refusal()
    assert b"Peer authentication failed" in refusal
    tap = start_tap(postgres.socket)
    assert output(postgres.query("select current_user")) == f"{OTHER.pw_name}\n".encode()
    await_clients(tap, 1)
    assert postgres.refusal() == refusal


def test_pgbench(postgres: Postgres, start_tap: StartTap) -> None:
    """pgbench fills its tables and does all its transactions."""
    tap = start_tap(postgres.socket)
    pgbench = [*as_other("pgbench"), *postgres.options()]
    output([*pgbench, "-i", "-q", "postgres"])
    done = output([*pgbench, "-c", "4", "-t", "50", "postgres"])
    assert b"transactions actually processed: 200/200\n" in done
    await_clients(tap, 5)


# --- redis, HTTP ---


def test_redis(stage: Stage, start_tap: StartTap) -> None:
    """redis-cli and redis-benchmark get all their answers."""
    path = stage.path("redis.sock")
    argv = [program("redis-server"), "--port", "0", "--unixsocket", path, "--unixsocketperm", "777"]
    stage.spawn("redis-server", [*argv, "--save", "", "--dir", stage.directory], stage.path("redis.out"))
    stage.await_socket(path)
    tap = start_tap(path)
    assert output([*as_other("redis-cli"), "-s", path, "SET", "key", "value"]) == b"OK\n"
    assert output([*as_other("redis-cli"), "-s", path, "GET", "key"]) == b"value\n"
    benchmark = [*as_other("redis-benchmark"), "-s", path, "-n", "2000", "-q", "-t", "set,get,lpush"]
    assert len(re.findall(rb"[\d.]+ requests per second", output(benchmark))) == 3
    await_clients(tap, 2 + 50)


def test_curl(stage: Stage, start_tap: StartTap) -> None:
    """curl --unix-socket gets a large file twice on one connection, as it is."""
    path, page = stage.path("http.sock"), os.urandom(5 * 1024 * 1024)
    with open(stage.path("www", "page"), "xb") as file:
        file.write(page)
    server = f"server {{ listen unix:{path}; root {stage.path('www')}; access_log off; }}"
    run_nginx(stage, server, [])
    stage.await_socket(path)
    tap = start_tap(path)
    url = "http://localhost/page"
    assert output([*as_other("curl"), "-sS", "--unix-socket", path, url, url]) == page * 2
    [close] = tap.wait_for("close")
    assert close["s2c_bytes"] > 2 * len(page)
    await_clients(tap, 1)


# --- datagrams ---


class Datagram(NamedTuple):
    """What was sent, and by whom, as the kernel says."""

    data: bytes
    pid: int
    user: tuple[int, int]


class Receiver:
    """Receives datagrams, as who listens on /dev/log or $NOTIFY_SOCKET does. A context manager."""

    _CREDENTIALS = struct.Struct("=iII")

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(LIMIT_S)
        self._socket.bind(path)
        os.chmod(path, 0o666)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def receive(self) -> Datagram:
        data, [(_, kind, content)], _, _ = self._socket.recvmsg(9999, socket.CMSG_SPACE(self._CREDENTIALS.size))
        assert kind == socket.SCM_CREDENTIALS
        pid, uid, gid = self._CREDENTIALS.unpack(content)
        return Datagram(data, pid, (uid, gid))


def test_logger(stage: Stage, start_tap: StartTap) -> None:
    """What logger writes to its socket arrives as it does without a tap, and from the same user."""
    path = stage.path("log")

    def logged() -> tuple[bytes, tuple[int, int]]:
        output([*as_other("logger"), "--socket", path, "--tag", "e2e", "--priority", "mail.err", "several words"])
        message = log.receive()
        return re.sub(rb">\w{3} [ \d]\d \d\d:\d\d:\d\d ", b">", message.data), message.user

    with Receiver(path) as log:
        directly = logged()
        assert directly == (b"<19>e2e: several words", (OTHER.pw_uid, OTHER.pw_gid))
        start_tap(path)
        assert logged() == directly


LOGGERS = int(os.environ.get("UDSPROXY_LOGGERS", "20"))


def test_senders_that_end_at_once(stage: Stage, start_tap: StartTap) -> None:
    """Of a sender that has ended before its message was sent on, user and group are right all the same, and the pid
    is udsproxy's: no other can be said then. How many those are is told (``pytest -s``)."""
    path, ours = stage.path("log"), 0
    with Receiver(path) as log:
        tap = start_tap(path)
        for number in range(LOGGERS):
            with subprocess.Popen([*as_other("logger"), "--socket", path, str(number)]) as logger:
                pass
            message = log.receive()
            assert message.data.endswith(b": %d" % number)
            assert message.user == (OTHER.pw_uid, OTHER.pw_gid)
            assert message.pid in (logger.pid, tap.pid)
            ours += message.pid == tap.pid
    print(f"\n{ours} of {LOGGERS} had udsproxy's pid")


def test_a_sender_that_has_ended(stage: Stage, start_tap: StartTap) -> None:
    """So it is for certain where the proxy stands still meanwhile; and who is still there then is known."""
    path = stage.path("log")
    with Receiver(path) as log, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as alive:
        tap = start_tap(path)
        alive.connect(path)
        tap.freeze()
        with subprocess.Popen([*as_other("logger"), "--socket", path, "gone"]):
            pass
        alive.send(b"alive")
        tap.signal(signal.SIGCONT)
        gone, known = log.receive(), log.receive()
    assert (gone.user, gone.pid) == ((OTHER.pw_uid, OTHER.pw_gid), tap.pid)
    assert known == (b"alive", os.getpid() if ROOT else tap.pid, (os.geteuid(), os.getegid()))


def test_a_service_that_says_it_is_ready(stage: Stage, start_tap: StartTap) -> None:
    """What a service sends to $NOTIFY_SOCKET arrives with its uid, gid and (where we are root) pid: that is how
    systemd knows which service it is."""
    path = stage.path("notify")
    argv = [*as_other("socat"), "-u", "STDIN", f"UNIX-SENDTO:{path}"]
    with Receiver(path) as systemd:
        start_tap(path)
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as service:
            assert service.stdin is not None
            service.stdin.write(b"READY=1\nSTATUS=serving")
            service.stdin.flush()
            message = systemd.receive()
    assert message.data == b"READY=1\nSTATUS=serving"
    assert message.user == (OTHER.pw_uid, OTHER.pw_gid)
    assert message.pid == service.pid or not ROOT


# --- D-Bus, Wayland ---

_BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"""


def test_a_bus_knows_its_clients(stage: Stage, start_tap: StartTap) -> None:
    """dbus-daemon lets clients in by their uid (EXTERNAL), and says of a connection whose it is."""
    path = stage.path("bus")
    conf = stage.write(_BUS.format(path=path), "bus.conf")
    argv = [program("dbus-daemon"), f"--config-file={conf}", "--nofork", "--print-address"]
    stage.spawn("dbus-daemon", argv, stage.path("bus.out"))
    until(lambda: path in read(stage.path("bus.out")), "the bus")

    def ask(method: str, *arguments: str) -> str:
        bus = [f"--bus=unix:path={path}", "--print-reply=literal", "--dest=org.freedesktop.DBus"]
        call = ["/org/freedesktop/DBus", f"org.freedesktop.DBus.{method}", *arguments]
        return output([*as_other("dbus-send"), *bus, *call]).decode().strip()

    tap = start_tap(path)
    [number] = re.findall(r":1\.(\d+)", ask("ListNames"))
    # The next connection's name is known: so one can ask for itself.
    assert ask("GetConnectionUnixUser", f"string::1.{int(number) + 1}") == f"uint32 {OTHER.pw_uid}"
    await_clients(tap, 2)


def send_memory(sock: socket.socket, name: bytes, content: bytes) -> None:
    """A message with the descriptor of a file in memory."""
    with open(os.memfd_create("memory"), "wb") as file:
        file.write(content)
        file.flush()
        socket.send_fds(sock, [name], [file.fileno()])


def receive_memory(sock: socket.socket, name: bytes) -> bytes:
    """What is in the memory that came with a message."""
    message, [descriptor], _, _ = socket.recv_fds(sock, len(name), 1)
    assert message == name
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
        os.close(descriptor)
        return bytes(mapped)


def compositor(client: socket.socket) -> None:
    """A server that is shown memory, and shows some in return, as Wayland's do with pools and keymaps."""
    send_memory(client, b"keymap", receive_memory(client, b"pool")[::-1])


def test_memory_is_shared(stage: Stage, start_tap: StartTap) -> None:
    """Memory that one end shows the other by a descriptor can be mapped there, in both directions."""
    path, picture = stage.path("wayland-0"), os.urandom(1 << 20)
    with SocketServer(path, compositor):
        tap = start_tap(path)
        with connect(path) as client:
            send_memory(client, b"pool", picture)
            assert receive_memory(client, b"keymap") == picture[::-1]
        tap.wait_for("close", c2s_bytes=len(b"pool"), s2c_bytes=len(b"keymap"))
