"""The configuration file: the example, what a file says, and what each mistake is told."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stage import REPOSITORY
from udsproxy.config import Config, LogConfig, ProxyConfig, parse_file
from udsproxy.endpoints import Tcp, UnixPath
from udsproxy.faults import kinds
from udsproxy.faults.rules import Rule
from udsproxy.units import ConfigError

PROXY = '[[proxy]]\nlisten = "/l"\nupstream = "/u"\n'


def test_the_example_says_what_holds_without_it() -> None:
    """config/udsproxy.toml has every key, each with its default."""
    with open(f"{REPOSITORY}/config/udsproxy.toml", encoding="utf-8") as file:
        text = file.read()
    listen, upstream = UnixPath("/tmp/udsproxy-seen.sock"), UnixPath("/run/php/php8.2-fpm.sock")
    assert parse_file(text) == Config(proxies=(ProxyConfig(listen=listen, upstream=upstream, name="www"),))
    written = {line.lstrip("# ").partition(" = ")[0] for line in text.splitlines() if " = " in line}
    assert written >= {
        "grace",
        "faults",
        "seed",
        "format",
        "file",
        "size",
        "keep",
        "verbose",
        "hexdump",
        "redact",
        "show",
    }
    assert "show_secrets" in written
    assert written >= {
        "color",
        "listen",
        "upstream",
        "name",
        "decode",
        "backlog",
        "connect_timeout",
        "slow",
        "incident",
    }


def test_a_file_that_says_everything() -> None:
    """Every key is heeded; faults for all come before a proxy's own."""
    text = """
        grace = 0.5
        seed = 7
        faults = ["hold"]
        [log]
        format = "json"
        file = "/log"
        size = "1MiB"
        keep = 2
        verbose = 2
        hexdump = "4KiB"
        redact = ["Token"]
        show = ["APP_ENV"]
        color = "never"
        [[proxy]]
        listen = "/a/l,mode=660"
        upstream = "tcp:[::1]:9000"
        backlog = 5
        decode = "raw"
        connect_timeout = "250ms"
        slow = "2s"
        incident = "none"
        faults = ["refuse", "refuse for=1s"]
        [[proxy]]
        name = "two"
        listen = "/m"
        upstream = "/u"
    """
    held = Rule(fault=kinds.Hold(), name="hold")
    first = ProxyConfig(
        listen=UnixPath("/a/l", 0o660), upstream=Tcp("::1", 9000), name="l", backlog=5, decode="raw",
        connect_timeout_s=0.25,
        slow_s=2.0,
        incident_s=None,
        faults=(
            held,
            Rule(fault=kinds.Refuse(), name="refuse"),
            Rule(fault=kinds.Refuse(), for_s=1.0, name="refuse-2"),
        ),
    )  # fmt: skip
    second = ProxyConfig(listen=UnixPath("/m"), upstream=UnixPath("/u"), name="two", faults=(held,))
    log = LogConfig(
        format="json",
        file="/log",
        size=1 << 20,
        keep=2,
        verbosity=2,
        hexdump=4096,
        redact=("Token",),
        show=("APP_ENV",),
        color="never",
    )
    assert parse_file(text) == Config(proxies=(first, second), log=log, grace_s=0.5, seed=7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no [[proxy]]"),
        ("x", "it is not TOML: "),
        ("proxy = 3", "proxy = 3: a list is needed"),
        ("[proxy]", "proxy = {}: a list is needed"),
        ("proxy = [1]", "proxy: write [[proxy]] before each"),
        ("[[proxy]]", "proxy[1].listen is missing"),
        (PROXY + "[[proxy]]\nlisten = '/m'", "proxy[2].upstream is missing"),
        (PROXY + "upsteam = '/x'", "unknown key proxy[1].upsteam; did you mean 'upstream'?"),
        (PROXY + "wings = 2", "unknown key proxy[1].wings; choose one of listen, upstream, "),
        (PROXY + "backlog = true", "proxy[1].backlog = True: text or a whole number is needed"),
        (PROXY + "backlog = 'many'", "proxy[1]: 'many' is not mirror or a number"),
        (PROXY + "backlog = -1", "proxy[1]: backlog -1"),
        (PROXY + "decode = 'http'", "proxy[1].decode = 'http': choose one of auto, fastcgi, raw, none"),
        (PROXY + "connect_timeout = 'soon'", "proxy[1].connect_timeout: 'soon' is not a duration"),
        (PROXY + "slow = 0", "proxy[1].slow: 0: more than 0 is needed, or none"),
        (PROXY + "incident = 'never'", "proxy[1].incident: 'never' is not a duration"),
        (PROXY + "faults = ['refus']", "proxy[1].faults: fault 'refus': unknown"),
        (PROXY + "faults = ['refus']", "unknown fault 'refus'; did you mean 'refuse'?"),
        (PROXY + "faults = ['close if proxy=x']", "proxy[1]: fault close: it is for proxy=x, and this is 'l'"),
        ("faults = ['close if proxy=x']\n" + PROXY, "faults: close is for proxy=x, and there is none"),
        (PROXY.replace("/l", "@l") + "faults = ['missing']", "it is for a socket with a file; unix:@l has none"),
        (PROXY.replace("/l", "tcp:a:1") + "faults = ['deny']", "it is for a socket with a file"),
        (PROXY + "faults = [3]", "proxy[1].faults: 3 is not text"),
        (PROXY.replace("/l", "/l,mod=6"), "proxy[1].listen: endpoint '/l,mod=6': unknown option 'mod'"),
        (PROXY.replace("/u", "/l"), "proxy[1]: /l would forward to itself"),
        (PROXY.replace("/u", "/u,mode=600"), "are for LISTEN"),
        (PROXY + PROXY.replace("/l", "/m/l"), "two proxies are called 'l'"),
        ("[log]\nformt = 'json'\n" + PROXY, "unknown key log.formt; did you mean 'format'?"),
        ("[log]\nhexdump = 'big'\n" + PROXY, "log.hexdump: 'big' is not a size"),
        ("[log]\nsize = '1MiB'\n" + PROXY, "log: a log size of 1048576 bytes: it is for a log file, and there is"),
        ("[log]\nfile = '/f'\nsize = 9\n" + PROXY, "log: a log size of 9 bytes: at least 65536 are needed"),
        ("[log]\nkeep = 0\n" + PROXY, "log: log files to keep: 0: a number from 1 to 1000 is needed"),
        (PROXY.replace("/u", "tcp:a:1") + "faults = ['workers=1']", "fault workers: it is for Unix sockets"),
        ("sed = 3\n" + PROXY, "unknown key sed; did you mean 'seed'?"),
        ("seed = 'x'\n" + PROXY, "seed = 'x': a whole number is needed"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    """One line, with the path of the key, and what would do."""
    with pytest.raises(ConfigError) as caught:
        parse_file(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.text() | st.text("[]proxy=\"'\n123.{}") | st.builds("{}{} = {}".format, st.just(PROXY), st.text(), st.text())
)
def test_any_text_is_a_configuration_or_a_mistake(text: str) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_file(text), Config)
