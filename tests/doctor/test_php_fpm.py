"""php-fpm's configuration, as people write it and as nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import php_fpm
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
    """Debian's files, with include=, comments, quotes and $pool."""
    reader = Reader()
    sections, files = php_fpm.read_sections(reader, write(tmp_path))
    assert php_fpm.pool_at(sections, path.__eq__) == name
    assert files["shop"] == str(tmp_path / "pool.d" / "shop.conf")
    assert sections["www"]["listen.owner"] == "www-data"
    assert sections["www"]["php_admin_value[error_log]"] == "/var/log/fpm;php.www.log"
    assert sections["shop"]["pm.max_children"] == "40"
    assert "listen.backlog" not in sections["www"]
    assert not reader.notes


def test_includes_that_go_round_end(tmp_path: Path) -> None:
    """A file that includes itself, directly and through another, is noted and the rest is read."""
    path = write(tmp_path, **{"loop.conf": f"include = {tmp_path}/*.conf\n[late]\nlisten = /run/late\n"})
    reader = Reader()
    sections, _ = php_fpm.read_sections(reader, path)
    assert sections["late"] == {"listen": "/run/late"}
    assert any("go round" in note for note in reader.notes)


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
        php_fpm.parse_line(f"pm = {each}")
        php_fpm.parse_line(each)
        php_fpm.configuration_of(each)


@given(st.text(st.sampled_from("[]=;'\"\n aé\0\x1b$include.*/")))
def test_any_file_is_read(text: str) -> None:
    """Sections and keys come out, or not; nothing raises. (What it includes may not be there.)"""

    class Given(Reader):
        def read(self, path: str) -> str | None:
            return text

        def matching(self, pattern: str, directory: str) -> list[str]:
            return [pattern, "x"]

    sections, _ = php_fpm.read_sections(Given(), "x")
    php_fpm.pool_at(sections, lambda path: False)
