"""What people paste: lines as the programs write them, and anything else."""

from __future__ import annotations

import shlex
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.endpoints.spelling import address_of
from udsproxy.explain.errors import CALLS, ELSEWHERE, TABLE
from udsproxy.explain.lines import MAX, Found, nearest, parse
from udsproxy.explain.symptoms import SYMPTOMS
from udsproxy.explain.text import MAX_WIDTH, answer, command, overview

NGINX = (
    "2026/11/23 09:33:42 [error] 115#115: *37 {} while {} upstream, client: 203.0.113.7, server: _, "
    'request: "GET /slow.php HTTP/1.1", upstream: "fastcgi://unix:/run/php/php8.2-fpm.sock:", host: "localhost"'
)
FPM = "/run/php/php8.2-fpm.sock"


@pytest.mark.parametrize(
    ("text", "call", "errno", "path"),
    [
        ("EAGAIN", None, "EAGAIN", None),
        ("eagain", None, "EAGAIN", None),
        ("EWOULDBLOCK", None, "EAGAIN", None),
        ("ENOTSUP", None, "EOPNOTSUPP", None),
        ("11", None, "EAGAIN", None),
        ("errno 11", None, "EAGAIN", None),
        ("connect EAGAIN", "connect", "EAGAIN", None),
        ("connect 11", "connect", "EAGAIN", None),
        ("connect() 111", "connect", "ECONNREFUSED", None),
        ("writev EPIPE", "send", "EPIPE", None),
        ("accept4: emfile", "accept", "EMFILE", None),
        ("resource temporarily unavailable", None, "EAGAIN", None),
        ("Broken pipe", None, "EPIPE", None),
        (
            NGINX.format(f"connect() to unix:{FPM} failed (11: Resource temporarily unavailable)", "connecting to"),
            "connect",
            "EAGAIN",
            FPM,
        ),
        (
            NGINX.format(
                "recv() failed (104: Connection reset by peer)",
                "reading response header from",
            ),
            "recv",
            "ECONNRESET",
            FPM,
        ),
        (
            NGINX.format("writev() failed (32: Broken pipe)", "sending request to"),
            "send",
            "EPIPE",
            FPM,
        ),
        (
            "2026/11/23 09:33:42 [crit] 1#1: *5 connect() to unix:/tmp/app.sock failed (13: Permission denied) "
            'while connecting to upstream, client: ::1, server: , request: "GET / HTTP/1.1", upstream: '
            '"http://unix:/tmp/app.sock:/x", host: "a"',
            "connect",
            "EACCES",
            "/tmp/app.sock",
        ),
        (
            "2026/11/23 09:33:42 [emerg] 1#1: bind() to unix:/run/nginx.sock failed (98: Address already in use)",
            "bind",
            "EADDRINUSE",
            "/run/nginx.sock",
        ),
        (
            "2026/11/23 09:33:42 [crit] 9#9: accept4() failed (24: Too many open files)",
            "accept",
            "EMFILE",
            None,
        ),
        (
            "[proxy:error] [pid 7] (11)Resource temporarily unavailable: AH02454: FCGI: attempt to connect to Unix "
            f"domain socket {FPM} (localhost:8000) failed",
            "connect",
            "EAGAIN",
            FPM,
        ),
        (
            "[proxy_fcgi:error] (2)No such file or directory: [client ::1:5] AH02454: FCGI: attempt to connect to "
            "Unix domain socket /run/php/p.sock (*) failed",
            "connect",
            "ENOENT",
            "/run/php/p.sock",
        ),
        (
            "[proxy:error] (11)Resource temporarily unavailable: AH01079: failed to make connection to backend: "
            "httpd-UDS",
            "connect",
            "EAGAIN",
            None,
        ),
        ("[proxy_fcgi:error] [pid 7] (104)Connection reset by peer: AH01075: Error", None, "ECONNRESET", None),
        (
            "Server php/fpm is DOWN, reason: Layer4 connection problem, info: "
            '"Connection refused at initial connection step"',
            "connect",
            "ECONNREFUSED",
            None,
        ),
        (
            "PDOException: SQLSTATE[HY000] [2002] No such file or directory in /srv/db.php:3",
            "connect",
            "ENOENT",
            None,
        ),
        (
            "PHP Warning: stream_socket_client(): Unable to connect to unix:///run/x.sock (Connection refused)",
            "connect",
            "ECONNREFUSED",
            "/run/x.sock",
        ),
        ("connect(): Connection refused [unix:///run/app/x.sock]", "connect", "ECONNREFUSED", "/run/app/x.sock"),
        (
            "ERROR: unable to bind listening socket for address '/run/php/p.sock': No such file or directory (2)",
            "bind",
            "ENOENT",
            "/run/php/p.sock",
        ),
        (
            "ERROR 2002 (HY000): Can't connect to local server through socket '/run/mysqld/mysqld.sock' (111)",
            "connect",
            "ECONNREFUSED",
            "/run/mysqld/mysqld.sock",
        ),
        (
            'psql: error: connection to server on socket "/var/run/postgresql/.s.PGSQL.5432" failed: '
            "No such file or directory",
            "connect",
            "ENOENT",
            "/var/run/postgresql/.s.PGSQL.5432",
        ),
        (
            "redis.exceptions.ConnectionError: Error 11 connecting to unix socket: /run/r.sock. "
            "Resource temporarily unavailable.",
            "connect",
            "EAGAIN",
            "/run/r.sock",
        ),
        (
            "Get http://x/: dial unix /x.sock: connect: resource temporarily unavailable",
            "connect",
            "EAGAIN",
            "/x.sock",
        ),
        ("dial unix @app: connect: connection refused", "connect", "ECONNREFUSED", "@app"),
        ("write unix @->/run/docker.sock: write: broken pipe", "send", "EPIPE", "/run/docker.sock"),
        ("listen unix /run/a.sock: bind: address already in use", "bind", "EADDRINUSE", "/run/a.sock"),
        ("ConnectionRefusedError: [Errno 111] Connection refused", None, "ECONNREFUSED", None),
        (
            'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n    s.connect(path)\n'
            "BlockingIOError: [Errno 11] Resource temporarily unavailable",
            "connect",
            "EAGAIN",
            None,
        ),
        (
            'connect(3, {sa_family=AF_UNIX, sun_path="/x"}, 110) = -1 EAGAIN (Resource temporarily unavailable)',
            "connect",
            "EAGAIN",
            "/x",
        ),
        (
            '[pid 7] connect(3, {sa_family=AF_UNIX, sun_path=@"x"}, 4) = -1 ECONNREFUSED (Connection refused)',
            "connect",
            "ECONNREFUSED",
            "@x",
        ),
        ("Error: connect ENOENT /run/x.sock", "connect", "ENOENT", "/run/x.sock"),
        (
            NGINX.format("connect() failed (111: Connection refused)", "connecting to").replace(
                "slow", "EPERM (11: unix:/x"
            ),
            "connect",
            "ECONNREFUSED",
            FPM,
        ),
        ('sendto(3, "x", 1, 0, NULL, 0) = -1 EPIPE (Broken pipe)', "send", "EPIPE", None),
    ],
)
def test_errors(text: str, call: str | None, errno: str, path: str | None) -> None:
    """The call, the errno and the path are found in what programs write."""
    found = parse(text)
    assert found is not None
    assert found.symptom is None
    assert (found.call, found.errno, found.path) == (call, errno, path)


def test_all_of_an_nginx_line() -> None:
    """Besides the error: who asked for what."""
    line = NGINX.format(f"connect() to unix:{FPM} failed (2: No such file or directory)", "connecting to")
    assert parse(line) == Found(
        call="connect",
        errno="ENOENT",
        path=FPM,
        client="203.0.113.7",
        request="GET /slow.php HTTP/1.1",
        program="nginx",
        at=datetime(2026, 11, 23, 9, 33, 42),  # noqa: DTZ001 - nginx's lines name no zone
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            NGINX.format("upstream prematurely closed connection", "reading response header from"),
            "closed connection",
        ),
        (
            NGINX.format("upstream prematurely closed FastCGI stdout", "reading response header from"),
            "FastCGI stdout",
        ),
        (
            NGINX.format("upstream timed out (110: Connection timed out)", "reading response header from"),
            "timed out",
        ),
        (NGINX.format("no live upstreams", "connecting to"), "no live upstreams"),
        (NGINX.format("upstream sent too big header", "reading response header from"), "too big header"),
        (NGINX.format("upstream sent unsupported FastCGI protocol version: 72", "reading"), "protocol version"),
        (NGINX.format("upstream sent unexpected FastCGI record: 3", "reading"), "unexpected FastCGI record"),
        (NGINX.format("upstream sent invalid FastCGI record type: 11", "reading"), "invalid FastCGI record"),
        (
            NGINX.format('FastCGI sent in stderr: "Primary script unknown"', "reading response header from"),
            "Primary script unknown",
        ),
        (NGINX.format('FastCGI sent in stderr: "PHP message: hello"', "reading response header from"), "stderr"),
        (
            NGINX.format(
                'FastCGI sent in stderr: "PHP message: PHP Warning: mysqli_connect(): (HY000/2002): No such file '
                'or directory in /srv/a.php on line 3"',
                "reading response header from",
            ),
            "stderr",
        ),
        ('203.0.113.7 - - [23/Nov/2026:09:33:42 +0000] "GET / HTTP/1.1" 502 157 "-" "curl/7.88"', "502"),
        ("502", "502"),
        ("502 Bad Gateway", "502"),
        ("504", "504"),
        ("499", "499"),
        (
            "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too",
            "499",
        ),
        (
            "WARNING: [pool www] server reached pm.max_children setting (5), consider raising it",
            "max_children",
        ),
        ("ERROR: An another FPM instance seems to already listen on /run/php/p.sock", "Another FPM instance"),
        ("OSError: AF_UNIX path too long", "too long"),
    ],
)
def test_symptoms(text: str, words: str) -> None:
    """Lines without an errno of the kernel's are told by their words."""
    found = parse(text)
    assert found is not None
    assert found.symptom is not None
    assert words in found.symptom.words
    assert found.errno is None


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.words)
def test_the_words_of_the_page_are_understood(symptom: object) -> None:
    """What the overview lists can be given back."""
    [words] = [each.words for each in SYMPTOMS if each is symptom]
    found = parse(words.split(" in the access log")[0])
    assert found is not None
    assert found.symptom is symptom


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-",
        "0",
        "7777",
        "hello",
        "walk 11",
        "all is well",
        "\x00",
        '203.0.113.7 - - [23/Nov/2026:09:33:42 +0000] "GET /11 HTTP/1.1" 200 11',
        "2026/11/23 09:33:42 [notice] 1#1: start worker process 11",
    ],
)
def test_no_error(text: str) -> None:
    """Where no error is named, none is found."""
    assert parse(text) is None


def test_a_call() -> None:
    """A call alone: what it may return."""
    found = parse("sendmsg()")
    assert found == Found(call="send")
    assert "ETOOMANYREFS" in answer(found)


def test_tcp() -> None:
    """A line about TCP is known as such."""
    found = parse(
        "connect() failed (111: Connection refused) while connecting to upstream, client: ::1, server: _, request: "
        '"GET / HTTP/1.1", upstream: "fastcgi://127.0.0.1:9000", host: "a"'
    )
    assert found is not None
    assert found.tcp == "127.0.0.1:9000"
    assert "It is about TCP (127.0.0.1:9000)" in answer(found)


def test_the_end_of_a_long_text_counts() -> None:
    """The end, as the error of a traceback is its last line; and what is between is not read."""
    found = parse("x " * MAX + "BlockingIOError: [Errno 11] Resource temporarily unavailable")
    assert found == Found(errno="EAGAIN")
    assert parse("x " * MAX + "EPIPE" + " x" * MAX) is None


def test_hostile_text() -> None:
    """Control characters are shown as text, and a path is quoted where it stands in a command."""
    found = parse("connect() to unix:/tmp/$(reboot)\x1b[31m;x.sock failed (11: Resource temporarily unavailable)")
    assert found is not None
    said = answer(found)
    assert "\x1b" not in said
    found = parse('connect(3, {sa_family=AF_UNIX, sun_path="/a;$(reboot)"}, 9) = -1 EAGAIN')
    assert found is not None
    assert "udsproxy tap '/a;$(reboot)'`" in answer(found)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('connect(3, {sa_family=AF_UNIX, sun_path=@"app"}, 6) = -1 ECONNREFUSED (Connection refused)', "@app"),
        ('connect(3, {sa_family=AF_UNIX, sun_path=@"a\\0b"}, 6) = -1 ECONNREFUSED (Connection refused)', "@a\\0b"),
        ("dial unix @app: connect: connection refused", "@app"),
        ("could not connect to '\\x00app': [Errno 111] Connection refused: socket '\\x00app'", "@app"),
        ("connect() to unix:@app failed (111: Connection refused) while connecting to upstream", "@app"),
    ],
)
def test_abstract_names(text: str, path: str) -> None:
    """They are written as `state` prints them, whatever a program makes of the NUL before them."""
    found = parse(text)
    assert found is not None
    assert found.path == path
    assert address_of(path).startswith("@")


def test_only_causes_that_can_be() -> None:
    """What is true of files is not said of an abstract name, nor the other way round; of neither all is said."""
    by_path = answer(Found(call="connect", errno="ECONNREFUSED", path="/run/x.sock"))
    by_name = answer(Found(call="connect", errno="ECONNREFUSED", path="@x"))
    unknown = answer(Found(call="connect", errno="ECONNREFUSED"))
    assert "bind mount" in by_path
    assert "namespace" not in by_path
    assert "network namespace" in by_name
    assert "bind mount" not in by_name
    assert "bind mount" in unknown
    assert "network namespace" in unknown


@pytest.mark.parametrize("words", ["stale", "//deleted", "Mount the directory", "NFS", "FUSE", "overlay"])
def test_a_refused_connection_has_the_causes_of_containers(words: str) -> None:
    """A stale bind mount of the socket's file wants the directory mounted; other filesystems hide the listener."""
    assert words in " ".join(answer(Found(call="connect", errno="ECONNREFUSED")).split())


def test_accept_on_what_is_no_socket() -> None:
    """Descriptor 0 is none where a server that expects its socket from a spawner was started by hand."""
    said = " ".join(answer(Found(call="accept", errno="ENOTSOCK")).split())
    assert "started by hand" in said
    assert "spawn-fcgi" in said
    assert "systemd" in said
    assert "started by hand" not in answer(Found(call="connect", errno="ENOTSOCK"))


WORDS = st.sampled_from(
    [
        "connect()",
        "unix:",
        "/run/x.sock",
        "failed (",
        "11",
        ": ",
        "EAGAIN",
        "(",
        ")",
        '"',
        "'",
        "`",
        "\n",
        "\\",
        "upstream",
    ]
)


@given(st.one_of(st.text(), st.lists(st.one_of(WORDS, st.text(max_size=3))).map("".join)))
def test_never_raises(text: str) -> None:
    """Whatever the text is, it is understood or not, and what was understood can be answered, printably."""
    found = parse(text)
    if found is not None:
        said = answer(found)
        assert all(line.isprintable() for line in said.splitlines())


@pytest.mark.parametrize("errno", sorted({each.errno for each in TABLE} | set(ELSEWHERE)))
@pytest.mark.parametrize("call", [None, *CALLS])
def test_every_answer_fits(call: str | None, errno: str) -> None:
    """Each errno has an answer, with a call or without. On a terminal no line is wider than it, or than MAX_WIDTH,
    and nothing is lost; elsewhere a paragraph is a line."""
    found = parse(f"{call or ''} {errno}")
    assert found is not None
    assert found.errno == errno
    whole = answer(found)
    assert errno in whole.splitlines()[0]
    for width in (60, 80, 120, 200):
        said = answer(found, width)
        assert max(map(len, said.splitlines())) <= min(width, MAX_WIDTH)
        assert "".join(said.replace(" \\\n", "").split()) == "".join(whole.split())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_overview_fits(width: int) -> None:
    """Its lines are folded beside the names, which stay in a column of their own."""
    lines = overview(width).splitlines()
    assert max(map(len, lines)) <= min(width, MAX_WIDTH)
    names = {each.errno for each in TABLE}
    assert names <= {line[2:16].strip() for line in lines}


def test_each_error_says_what_it_is_first() -> None:
    """The first line names the call, the errno, its number and the kernel's words."""
    found = parse("connect 11")
    assert found is not None
    assert answer(found).splitlines()[0] == "connect(): EAGAIN (11, Resource temporarily unavailable)"


def test_only_causes_of_the_errno() -> None:
    """Where a line about a file has an errno, the causes of others are left out."""
    found = parse('[error] 1#1: *1 open() "/var/www/50x.html" failed (2: No such file or directory), client: ::1')
    assert found is not None
    said = answer(found)
    assert "ENOENT: the file does not exist" in said
    assert "EACCES" not in said


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("EAGIAN", "EAGAIN"),
        ("econrefused", "ECONNREFUSED"),
        ("acept", "accept"),
        ("acept()", "accept"),
        ("conect EAGIAN", "connect EAGAIN"),
        ("hello", None),
        ("foo EAGAIN", None),
        ("a b c", None),
        ("", None),
    ],
)
def test_what_was_probably_meant(written: str, meant: str | None) -> None:
    """An errno and a call, with letters left out or exchanged; nothing that resembles none."""
    assert nearest(written) == meant


def test_the_words_of_each_symptom() -> None:
    """To explain them gives that symptom: they are what a command that explains it names."""
    for symptom in SYMPTOMS:
        found = parse(symptom.words)
        assert found is not None
        assert found.symptom is symptom
        assert parse(" ".join(shlex.split(command(found))[2:])) == found
