"""nginx's configuration, as people write it and as nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import nginx
from udsproxy.doctor.facts import Nginx, Pass, Peer, Upstream
from udsproxy.doctor.reading import Reader

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


def look(directory: Path, **files: str) -> tuple[Reader, Nginx | None]:
    (directory / "sites").mkdir()
    for name, text in {"site": SITE, **files}.items():
        (directory / "sites" / name).write_text(text)
    (directory / "nginx.conf").write_text(CONF)
    reader = Reader()
    return reader, nginx.look(reader, str(directory / "nginx.conf"), 7, SOCK.__eq__)


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
    )
    assert reader.notes == [f"{tmp_path}/nginx.conf: where 1 of its *_pass lead: it is a variable that says it"]


def test_another_nginx(tmp_path: Path) -> None:
    """One that does not mention the socket is none of our concern."""
    (tmp_path / "nginx.conf").write_text("http { upstream a { server unix:/run/y.sock; } }")
    assert nginx.look(Reader(), str(tmp_path / "nginx.conf"), 7, SOCK.__eq__) is None


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


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("nginx: master process nginx", (None, None)),
        ("nginx: master process /usr/sbin/nginx -g daemon on; master_process on;", (None, None)),
        ("nginx: master process nginx -p /srv -c conf/my.conf", ("conf/my.conf", "/srv")),
        ("nginx: master process nginx -c/etc/x.conf", ("/etc/x.conf", None)),
    ],
)
def test_a_title(title: str, found: tuple[str | None, str | None]) -> None:
    """What nginx was started with."""
    assert nginx.configuration_of(title) == found


def test_words() -> None:
    """Quotes, escapes, comments and variables, as ngx_conf_read_token() takes them."""
    (set_, location) = nginx.parse('set $a "b;{\\"c" \'#d\' e#f ${g}h; # i;\nlocation ~ \\.php$ { return 404; }')
    assert set_ == nginx.Directive("set", ("$a", 'b;{"c', "#d", "e#f", "${g}h"), 1)
    assert location == nginx.Directive("location", ("~", "\\.php$"), 2, (nginx.Directive("return", ("404",), 2),))


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
    nginx.configuration_of(text)


PIECES = st.sampled_from(
    ["upstream", "server", "fastcgi_pass", "unix:/run/php/x.sock", "a", "http", "location", "max_fails=", "include",
     " ", " ", ";", ";", "{", "}", "}", '"', "'", "\\", "#", "\n", "$", "${", "\0", "\udcff", "٣", "keepalive 9;"]
)  # fmt: skip


@given(st.lists(PIECES).map("".join))
def test_any_file_is_read(text: str) -> None:
    """Something comes out, or nothing; it never raises."""

    class Given(Reader):
        def read(self, path: str) -> str | None:
            return text

        def matching(self, pattern: str, directory: str) -> list[str]:
            return [pattern]

    nginx.look(Given(), "/x", 7, SOCK.__eq__)


@pytest.mark.parametrize(
    "text", ['"' + "\\" * 500_001, "'" + "a\\" * 300_000, "a{" * 300_000, "}" * 500_000, "$" * 500_000]
)
def test_long_files_take_no_long_time(text: str) -> None:
    """A MiB of what a parser might stumble over, to its end."""
    nginx.parse(text)
