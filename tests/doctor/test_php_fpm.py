"""php-fpm's configuration, as people write it and as nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import php_fpm
from udsproxy.doctor.facts import Refused
from udsproxy.doctor.php_fpm import Setting
from udsproxy.doctor.reading import Reader

DEBIAN = """\
;;;;;;;;;;;;;;;;;;;;;
; FPM Configuration ;
;;;;;;;;;;;;;;;;;;;;;
[global]
pid = /run/php/php8.2-fpm.pid
error_log = /var/log/php8.2-fpm.log
;process.max = 128
include={directory}/pool.d/*.conf
"""
POOLS = {
    "www.conf": """\
; Start a new pool named 'www'.
[www]
user = www-data
listen = /run/php/php8.2-fpm.sock
;listen.backlog = 511
listen.owner = www-data   ; nginx
pm = dynamic
pm.max_children = 5
php_admin_value[error_log] = "/var/log/fpm;php.www.log"
env[PATH] = /usr/local/bin:/usr/bin:/bin
""",
    "shop.conf": "[shop]\nlisten = '/run/php/$pool.sock'\npm=static\npm.max_children=40\r\nlisten.backlog=-1\n",
}


def write(directory: Path, **files: str) -> str:
    (directory / "pool.d").mkdir()
    for name, text in {**POOLS, **files}.items():
        (directory / "pool.d" / name).write_text(text)
    file = directory / "php-fpm.conf"
    file.write_text(DEBIAN.format(directory=directory))
    return str(file)


@pytest.mark.parametrize(
    ("path", "name"), [("/run/php/php8.2-fpm.sock", "www"), ("/run/php/shop.sock", "shop"), ("/run/x", None)]
)
def test_the_pool_that_listens_there(tmp_path: Path, path: str, name: str | None) -> None:
    """Debian's files, with include=, comments, quotes and $pool; each setting with its place."""
    reader = Reader()
    found = php_fpm.read(reader, write(tmp_path), "/usr")
    pool = php_fpm.pool_at(found, path.__eq__)
    assert (pool and pool.name) == name
    www, shop = found.sections["www"], found.sections["shop"]
    assert shop.at == f"{tmp_path}/pool.d/shop.conf:1"
    assert www.settings["listen.owner"] == Setting("www-data", f"{tmp_path}/pool.d/www.conf:6")
    assert www.value("php_admin_value[error_log]") == "/var/log/fpm;php.www.log"
    assert shop.value("pm.max_children") == "40"
    assert "listen.backlog" not in www.settings
    assert not reader.notes
    assert not found.refused
    assert not found.is_relative


def test_sections_merge(tmp_path: Path) -> None:
    """A section that stands in several files, in any case, is one; the last value of each key counts, with its
    place. What stands behind an include belongs to the section that the included file ended in."""
    path = write(tmp_path, **{"z.conf": "[WWW]\nPM.max_children = 7\n[shop]\n"})
    with open(path, "a", encoding="ascii") as file:
        file.write("pm.max_children = 99\n[global]\nprocess.max = 9\n")
    found = php_fpm.read(Reader(), path, "/")
    assert [each.name for each in found.pools] == ["shop", "www"]
    assert found.sections["www"].settings["pm.max_children"] == Setting("7", f"{tmp_path}/pool.d/z.conf:2")
    assert found.sections["shop"].settings["pm.max_children"] == Setting("99", f"{path}:9")
    assert found.common.value("process.max") == "9"


def test_relative_names_begin_at_the_prefix(tmp_path: Path) -> None:
    """Of include and of listen, which may have a prefix of its pool in between."""
    (tmp_path / "etc" / "fpm.d").mkdir(parents=True)
    (tmp_path / "etc" / "fpm.d" / "a.conf").write_text(
        "[a]\nlisten = run/$pool.sock\n[b]\nprefix = sites/$pool\nlisten = php.sock\n[c]\nprefix=/srv\nlisten=x\n"
        "[d]\nlisten = 127.0.0.1:9000\n[e]\nlisten = 9001\n"
    )
    (tmp_path / "etc" / "fpm.conf").write_text("include=etc/fpm.d/*.conf\n")
    found = php_fpm.read(Reader(), str(tmp_path / "etc" / "fpm.conf"), str(tmp_path))
    assert found.is_relative
    assert [found.listens(each) for each in found.pools] == [
        f"{tmp_path}/run/a.sock",
        f"{tmp_path}/sites/b/php.sock",
        "/srv/x",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("file", "program", "first"),
    [
        ("/usr/local/etc/php-fpm.conf", "/usr/local/sbin/php-fpm", "/usr/local"),
        ("/srv/app/etc/php-fpm.conf", "/usr/sbin/php-fpm8.2", "/srv/app"),
        ("/etc/php/8.2/fpm/php-fpm.conf", "/usr/sbin/php-fpm8.2", "/usr"),
        ("/etc/php-fpm.conf", "/usr/sbin/php-fpm", "/usr"),
        ("/opt/bitnami/php/etc/php-fpm.conf", "/opt/bitnami/php/sbin/php-fpm", "/opt/bitnami/php"),
        ("/opt/cpanel/ea-php82/root/etc/php-fpm.conf", None, "/opt/cpanel/ea-php82/root"),
        ("/x.conf", None, "/"),
    ],
)
def test_prefixes(file: str, program: str | None, first: str) -> None:
    """The likeliest comes first; what is above the configuration, and above the socket, may be it, too."""
    found = php_fpm.prefixes(file, program, ["/srv/site/run/x.sock"])
    assert found[0] == first
    assert "/srv/site" in found
    assert len(set(found)) == len(found)


def test_includes_that_go_round_end(tmp_path: Path) -> None:
    """php-fpm does not start with a file that includes itself; the rest is read all the same."""
    path = write(tmp_path, **{"loop.conf": f"include = {tmp_path}/*.conf\n[late]\nlisten = /run/late\n"})
    found = php_fpm.read(Reader(), path, "/")
    assert found.sections["late"].value("listen") == "/run/late"
    assert found.refused[0].why == "more than 5 files that include each other"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """php-fpm does not start where a link leads nowhere; a directory, and a name that matches nothing, are no error
    to it."""
    path = write(tmp_path, **{"x.conf": "include = /nonexistent/x.conf\ninclude = /nonexistent/*.conf\n"})
    (tmp_path / "pool.d" / "y.conf").mkdir()
    (tmp_path / "pool.d" / "z.conf").symlink_to("/nonexistent")
    reader = Reader()
    found = php_fpm.read(reader, path, "/")
    assert found.refused == [
        Refused("php-fpm", f"{tmp_path}/pool.d/z.conf", f"{path}:8", "a link to /nonexistent, which is not there")
    ]
    assert not reader.notes


def test_the_environment_is_not_seen(tmp_path: Path) -> None:
    """What php-fpm takes from its environment is not known; of a path it says which pool it must be, where one
    has such a ``listen``."""
    path = write(tmp_path, **{"env.conf": "[env]\nlisten = ${SOCK}\npm.max_children = ${N}\npm = static\n"})
    found = php_fpm.read(Reader(), path, "/")
    env = found.sections["env"]
    assert (env.value("listen"), env.value("pm.max_children"), env.value("pm")) == (None, None, "static")
    assert php_fpm.pool_of_unknown(found) is env
    assert found.listens(env) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a ; b", "a"),
        ("a;b", "a"),
        ('"a;b" ; c', "a;b"),
        ("'a;b'", "a;b"),
        (r'"a\"b"', 'a"b'),
        ('a"y"z', "ayz"),
        ("a'b c' d", "ab c d"),
        ("  q   r  ", "q   r"),
        ("/a b/c", "/a b/c"),
        ("On", "1"),
        ("no", ""),
        ("none", ""),
        ('"none"', "none"),
        ("off/x", "off/x"),
        ("a#b", "a#b"),
        ("", ""),
        ('"', ""),
    ],
)
def test_a_value(text: str, value: str) -> None:
    """As php-fpm -tt shows them."""
    assert php_fpm.parse_value(text) == value


def test_a_title() -> None:
    """What the master calls itself, and what others do."""
    assert php_fpm.configuration_of("php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)") == (
        "/etc/php/8.2/fpm/php-fpm.conf"
    )
    assert php_fpm.configuration_of("php-fpm: pool www") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("30", 30.0), ("30s", 30.0), ("2m", 120.0), ("0", 0.0), ("", None), ("soon", None), ("٣", None)],
)
def test_seconds(text: str, value: float | None) -> None:
    """With and without a unit."""
    assert php_fpm.seconds(text) == value


@given(st.text(), st.text(max_size=10))
def test_any_value_is_read(text: str, unit: str) -> None:
    """Values that are none are as if they were not set: nothing raises."""
    for each in (text, f"9{unit}", f"{text}1"):
        php_fpm.seconds(each)
        php_fpm.number(each, 0)
        php_fpm.octal(each)
        list(php_fpm.parse_line(f"pm = {each}"))
        list(php_fpm.parse_line(each))
        php_fpm.configuration_of(each)
        php_fpm.prefixes(each, unit, [text])


@given(st.text(st.sampled_from("[]=;'\"\n aé\0\x1b$include.*/{}")))
def test_any_file_is_read(text: str) -> None:
    """Sections and keys come out, or not; nothing raises. (What it includes may not be there.)"""

    class Given(Reader):
        def read(self, path: str) -> str | None:
            return text

        def matching(self, pattern: str, directory: str) -> list[str]:
            return [pattern, "x"]

    found = php_fpm.read(Given(), "x", "/")
    php_fpm.pool_at(found, lambda path: False)
    php_fpm.pool_of_unknown(found)
