"""nginx's configuration, as people write it and as nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import nginx, nginx_start, nginx_syntax
from udsproxy.doctor.facts import ErrorLog, Nginx, Pass, Peer, Refused, Upstream
from udsproxy.doctor.nginx_start import Build, Options, Start
from udsproxy.doctor.reading import Reader
from udsproxy.kernel.roots import Root

SOCK = "/run/php/x.sock"

CONF = """\
user www-data www-data;   # as Debian has it
worker_processes auto;
events { worker_connections 768; }
http {
    log_format main '$remote_addr - "$request" {x; y}' "it's \\"quoted\\"";
    upstream pool {
        server unix:/run/php/x.sock max_fails=3 fail_timeout=1m;
        server unix:/run/php/y.sock;
        server 10.0.0.7:9000 backup;
        keepalive 8;
    }
    upstream other { server unix:/run/php/y.sock; }
    include sites/*;
}
"""
SITE = """\
server {
    location / { fastcgi_pass other; }
    location ~ ^/(?<name>\\w+)\\.php$ { fastcgi_pass pool; fastcgi_keep_conn on; }
    location /long { if ($x) { fastcgi_pass unix:/run/php/x.sock; } fastcgi_read_timeout 5m; }
    location /api/ { proxy_pass http://unix:/run/php/x.sock:/v1/; proxy_next_upstream off; }
    location "~ ^/[0-9]{3}" { fastcgi_pass ${backend}; }
    fastcgi_read_timeout 1m 30s;
}
"""


class Sockets:
    """Of this machine: the one that is looked at, and one that is there, too."""

    names: tuple[str, ...] = (SOCK,)

    def is_same(self, path: str) -> bool:
        return path == SOCK

    def missing(self, path: str) -> str | None:
        return None if path == "/run/php/y.sock" else "no such file"


def start(file: Path | str, globals: str = "") -> Start:  # noqa: A002 - nginx's word
    return Start(str(file), "/srv/nginx", "stderr", globals, "/run/php")


def look(directory: Path, **files: str) -> tuple[Reader, Nginx | None]:
    (directory / "sites").mkdir()
    for name, text in {"site": SITE, **files}.items():
        (directory / "sites" / name).write_text(text)
    (directory / "nginx.conf").write_text(CONF)
    reader = Reader()
    return reader, nginx.look(reader, start(directory / "nginx.conf"), 7, Sockets())[0]


def look_at(text: str) -> Nginx:
    """What a configuration of one file has."""

    class Given(Reader):
        def read(self, path: str) -> str | None:
            return text

    found, _ = nginx.look(Given(), start("/x"), 7, Sockets())
    assert found is not None
    return found


def test_what_is_about_a_socket(tmp_path: Path) -> None:
    """The blocks that have it, the places that lead there, and what is inherited, wherever that stands."""
    reader, found = look(tmp_path)
    assert found is not None
    site = f"{tmp_path}/sites/site"
    assert (found.user, found.worker_connections) == ("www-data", 768)
    assert found.upstreams == (
        Upstream(
            "pool",
            f"{tmp_path}/nginx.conf:6",
            (
                Peer("unix:/run/php/x.sock", True, 3, 60.0),
                Peer("unix:/run/php/y.sock", False),
                Peer("10.0.0.7:9000", False, backup=True),
            ),
            8,
        ),
    )
    assert found.passes == (
        Pass("fastcgi_pass", f"{site}:3", 90.0, keep_conn=True, upstream="pool"),
        Pass("fastcgi_pass", f"{site}:4", 300.0),
        Pass("proxy_pass", f"{site}:5", 60.0, ("off",)),
        Pass("fastcgi_pass", f"{site}:6", 90.0, variable="${backend}", is_sure=False),
    )
    assert reader.notes == ["the error log of nginx (pid 7): it goes to stderr"]
    assert not found.logs


def test_another_nginx(tmp_path: Path) -> None:
    """One that does not mention the socket is none of our concern."""
    (tmp_path / "nginx.conf").write_text("http { upstream a { server unix:/run/y.sock; } }")
    assert nginx.look(Reader(), start(tmp_path / "nginx.conf"), 7, Sockets()) == (None, [])


@pytest.mark.parametrize("loop", ["include sites/*;", "server { include sites/*; }", "server {" * 500])
def test_what_goes_round_or_too_deep_ends(tmp_path: Path, loop: str) -> None:
    """Includes of itself, also from inside blocks, and blocks without an end; the rest is found."""
    _, found = look(tmp_path, loop=loop)
    assert found is not None
    assert found.upstreams[0].name == "pool"


def test_includes_that_multiply_end(tmp_path: Path) -> None:
    """Files that each include the next twice are 2 to the 40th; what is looked at is bounded."""
    more = {f"f{number}": f"include {tmp_path}/sites/f{number + 1}; " * 2 for number in range(40)}
    _, found = look(tmp_path, **more)
    assert found is not None


def test_a_server_of_a_block_that_is_not_there() -> None:
    """Why nobody can be reached there is told of each other Unix socket that is not `down`."""
    found = look_at(
        "upstream a { server unix:x.sock; server unix:/run/php/y.sock; server unix:/gone.sock; "
        "server unix:/gone.sock down; server 10.0.0.7:9000; }"
    )
    assert [each.missing for each in found.upstreams[0].peers] == [None, None, "no such file", None, None]


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("set $pool x; fastcgi_pass unix:/run/php/$pool.sock;", True),
        ("fastcgi_pass unix:/run/php/${pool}.sock; set $pool y; if ($a) { set $pool x; }", True),
        (
            "fastcgi_pass unix:$sock; map $host $sock { hostnames; default /y.sock; ~a $p; b /run/php/x.sock; }",
            True,
        ),
        ("map $host $sock { a $dir/x.sock; } set $dir /run/php; proxy_pass http://unix:$sock:/uri;", True),
        ("fastcgi_pass $p; geo $p { default unix:/run/php/x.sock; }", True),
        ("fastcgi_pass $p; split_clients $ip $p { 5% a; * unix:/run/php/x.sock; }", True),
        ("upstream php { server unix:/run/php/x.sock; } set $v php; fastcgi_pass $v;", True),
        ("fastcgi_pass unix:/run/php/$pool.sock;", False),
        ("server { server_name ~^(?<n>.)$; fastcgi_pass unix:/run/$a/$n.sock; }", False),
        ("fastcgi_pass unix:$sock; map $host $sock { default $uri; }", False),
        ("upstream php_x { server unix:/run/php/x.sock; } fastcgi_pass php_$v;", False),
        ("fastcgi_pass $fastcgi;", False),
        ("fastcgi_pass $a; set $a $a$a;", False),
    ],
)
def test_a_variable(text: str, sure: bool) -> None:
    """What it can be is what the files say with constants; what they do not say may be anything."""
    (found,) = look_at(text).passes
    assert (found.is_sure, found.variable is not None) == (sure, True)


@pytest.mark.parametrize(
    "text",
    [
        "fastcgi_pass unix:/run/php/$pool.socket;",
        "fastcgi_pass unix:/run/other/$pool.sock;",
        "set $pool y; fastcgi_pass unix:/run/php/$pool.sock;",
        "proxy_pass http://$host;",
        "proxy_pass http://$host:9000;",
        "fastcgi_pass $host:9000;",
        "proxy_pass $scheme://backend;",
    ],
)
def test_a_variable_that_leads_elsewhere(text: str) -> None:
    """What cannot become the socket's path is not told."""

    class Given(Reader):
        def read(self, path: str) -> str | None:
            return text

    assert nginx.look(Given(), start("/x"), 7, Sockets())[0] is None


def test_variables_that_multiply_end() -> None:
    """A variable that stands many times in its own value, and many in one name: what is expanded is bounded."""
    sets = "".join(f"set $a {'$a' * 50}{number};" for number in range(50))
    assert look_at(f"{sets} fastcgi_pass {'$a$b' * 100};").passes


def test_error_logs() -> None:
    """Of each place those of the innermost level that has any, relative ones at the prefix; what is no file is
    none. Of two levels the one that logs more is told."""
    found = look_at(
        "error_log /main crit; http { error_log /http; server { error_log logs/server warn; error_log syslog:x; "
        "error_log stderr; location / { error_log /location error; fastcgi_pass unix:/run/php/x.sock; }"
        "location /b { fastcgi_pass unix:/run/php/x.sock; } } server { location / { error_log /location crit; "
        "fastcgi_pass unix:/run/php/x.sock; } location /c { fastcgi_pass unix:/run/php/y.sock; } } }"
    )
    assert found.logs == (ErrorLog("/location"), ErrorLog("/srv/nginx/logs/server", level="warn"))
    text = "user x; fastcgi_pass unix:x.sock;"
    assert look_at(text).logs == ()

    class Given(Reader):
        def read(self, path: str) -> str | None:
            return text

    seen, _ = nginx.look(Given(), start("/x", "error_log e.log; user g;"), 7, Sockets())
    assert seen is not None
    assert (seen.logs, seen.user) == ((ErrorLog("/srv/nginx/e.log"),), "x")


def test_what_nginx_would_refuse(tmp_path: Path) -> None:
    """Links that lead nowhere, directories and names that are not there, each with where it is included; a pattern
    that matches nothing is no error."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "a").symlink_to("/nonexistent/a")
    (tmp_path / "sites" / "d").mkdir()
    (tmp_path / "nginx.conf").write_text("http {\ninclude sites/*;\ninclude none/*; include none; }")
    reader = Reader()
    _, refused = nginx.look(reader, start(tmp_path / "nginx.conf"), 7, Sockets())
    conf = f"{tmp_path}/nginx.conf"
    assert refused == [
        Refused("nginx", f"{tmp_path}/sites/a", f"{conf}:2", "a link to /nonexistent/a, which is not there"),
        Refused("nginx", f"{tmp_path}/sites/d", f"{conf}:2", "a directory"),
        Refused("nginx", f"{tmp_path}/none", f"{conf}:3", "no such file"),
    ]
    assert not reader.notes


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("nginx: master process nginx", Options()),
        (
            "nginx: master process /usr/sbin/nginx -g daemon on; master_process on;",
            Options(globals="daemon on; master_process on;"),
        ),
        ("nginx: master process nginx -p /srv -c conf/my.conf", Options("conf/my.conf", "/srv")),
        ("nginx: master process nginx -c/etc/x.conf -e stderr", Options("/etc/x.conf", None, "stderr")),
        ("nginx: master process nginx -g daemon off; -c x.conf", Options("x.conf", globals="daemon off;")),
    ],
)
def test_a_title(title: str, found: Options) -> None:
    """What nginx was started with."""
    assert nginx_start.options_of(title) == found


DEBIAN = Build("/usr/share/nginx", "/etc/nginx/nginx.conf", "stderr")


@pytest.mark.parametrize(
    ("options", "build", "found"),
    [
        (Options(), DEBIAN, ("/etc/nginx/nginx.conf", "/usr/share/nginx", "stderr")),
        (Options(), Build(), ("/usr/local/nginx/conf/nginx.conf", "/usr/local/nginx", "logs/error.log")),
        (Options("conf/n.conf", "."), DEBIAN, ("/home/me/conf/n.conf", "/home/me", "stderr")),
        (Options("n.conf", "sub/", "e"), Build(), ("/home/me/sub/n.conf", "/home/me/sub", "e")),
        (Options(None, "/srv"), Build(), ("/srv/conf/nginx.conf", "/srv", "logs/error.log")),
        (Options("n.conf"), DEBIAN, ("/usr/share/nginx/n.conf", "/usr/share/nginx", "stderr")),
        (Options("/n.conf"), None, ("/n.conf", "/usr/local/nginx", "stderr")),
        (Options("n.conf"), None, None),
    ],
)
def test_where_it_has_its_files(options: Options, build: Build | None, found: tuple[str, str, str] | None) -> None:
    """A relative -p begins at the working directory, a relative -c at the prefix, whatever was compiled."""
    if options.prefix in (".", "sub/"):
        assert nginx_start.start_of(options, build, None, Root()) is None
    at = nginx_start.start_of(options, build, "/home/me", Root())
    assert (at and (at.file, at.prefix, at.error_log)) == found


def test_what_was_compiled() -> None:
    """It is found in an executable, as `nginx -V` prints it; what is no such thing has nothing."""
    text = (
        b"\x7fELF\0configure arguments: --with-cc-opt='-ffile-prefix-map=/build/x=.' --prefix=/usr/share/nginx "
        b"--conf-path=/etc/nginx/nginx.conf --error-log-path=/var/log/nginx/error.log\0"
    )
    assert nginx_start.build_of(text) == Build(
        "/usr/share/nginx", "/etc/nginx/nginx.conf", "/var/log/nginx/error.log"
    )
    assert nginx_start.build_of(b"\x7fELF -x--prefix=/a") is None


def test_words() -> None:
    """Quotes, escapes, comments and variables, as ngx_conf_read_token() takes them."""
    (set_, location) = nginx_syntax.parse(
        'set $a "b;{\\"c" \'#d\' e#f ${g}h; # i;\nlocation ~ \\.php$ { return 404; }'
    )
    assert set_ == nginx_syntax.Directive("set", ("$a", 'b;{"c', "#d", "e#f", "${g}h"), 1)
    assert location == nginx_syntax.Directive(
        "location", ("~", "\\.php$"), 2, (nginx_syntax.Directive("return", ("404",), 2),)
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("60", 60.0), ("500ms", 0.5), ("1h30m", 5400.0), ("1m 30s", 90.0), ("", None), ("x", None), ("1x", None)],
)
def test_seconds(text: str, value: float | None) -> None:
    """nginx's units."""
    assert nginx.seconds(text) == value


@given(st.text())
def test_any_time_is_read(text: str) -> None:
    """It never raises."""
    nginx.seconds(text)
    nginx_start.options_of(text)
    nginx_start.build_of(text.encode("utf-8", "surrogatepass"))


PIECES = st.sampled_from(
    ["upstream", "server", "fastcgi_pass", "unix:/run/php/x.sock", "a", "http", "location", "max_fails=", "include",
     " ", " ", ";", ";", "{", "}", "}", '"', "'", "\\", "#", "\n", "$", "${", "\0", "\udcff", "٣", "keepalive 9;",
     "a_by_lua_block {", "--", "[[",
     "set $a ", "map $b $a {", "error_log ", "unix:/run/$a.sock"]
)  # fmt: skip


@given(st.lists(PIECES).map("".join))
def test_any_file_is_read(text: str) -> None:
    """Something comes out, or nothing; it never raises."""

    class Given(Reader):
        def read(self, path: str) -> str | None:
            return text

        def matching(self, pattern: str, directory: str) -> list[str]:
            return [pattern]

    nginx.look(Given(), start("/x", text), 7, Sockets())


@pytest.mark.parametrize(
    "text",
    [
        "a_by_lua_block {" + "[=" * 400_000,
        "a_by_lua_block {" + "[[" * 400_000,
        '"' + "\\" * 500_001,
        "'" + "a\\" * 300_000,
        "a{" * 300_000,
        "}" * 500_000,
        "$" * 500_000,
    ],
)
def test_long_files_take_no_long_time(text: str) -> None:
    """A MiB of what a parser might stumble over, to its end."""
    nginx_syntax.parse(text)
