"""nginx and php-fpm with udsproxy between them: the same pages, and events that agree with nginx's own log."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.e2e.proxy import Record
from tests.e2e.site import DOWNLOAD_BYTES, Site, error_lines
from tests.e2e.tools import program, run, until

UPLOAD = bytes(range(256)) * (5 * 1024 * 1024 // 256)


@dataclass(frozen=True)
class Case:
    """A request, and what its event must say besides ``method`` and ``uri``."""

    uri: str
    status: int
    method: str = "GET"
    body: bytes | None = None
    stderr: str | None = None


CASES = {
    "get": Case("/query.php?a=1&b=%20%2F&c[]=x", 200),
    "post": Case("/upload.php", 200, "POST", UPLOAD),
    "put": Case("/upload.php?small", 200, "PUT", b"\0"),
    "download": Case("/download.php", 200),
    "head": Case("/hello.php?head", 200, "HEAD"),
    "file not found": Case("/missing.php", 404, stderr=r"Primary script unknown"),
    "status 404": Case("/absent.php", 404),
    "fatal error": Case(
        "/fatal.php", 500, stderr=r"PHP message: PHP Fatal error: .*out of luck.*\\nStack trace:.*"
    ),
    "error log": Case("/errorlog.php", 200, stderr=r"PHP message: red \\x1b\[31m, bell \\x07, line\\nline, \\xff"),
    "redirect without status": Case("/redirect.php", 302),
    "kept connection": Case("/kept/query.php?a=1", 200),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_page_is_the_same_through_the_proxy(site: Site, case: Case) -> None:
    """Status, headers and body of a page are the same to the byte with and without the proxy, and the proxy's event
    tells of the request what happened."""
    direct = site.direct.fetch(case.uri, method=case.method, body=case.body)
    proxied = site.proxied.fetch(case.uri, method=case.method, body=case.body)
    assert proxied == direct
    assert proxied.status == case.status

    event = site.request_event(case.uri)
    assert event["method"] == case.method
    assert event["status"] == case.status
    assert event["script"] == case.uri.partition("?")[0]
    assert event["protocol_status"] == "REQUEST_COMPLETE"
    assert "incomplete" not in event
    assert event["c2s_bytes"] > len(case.body or b"")
    assert event["s2c_bytes"] > len(proxied.body)
    if case.stderr is None:
        assert "stderr" not in event
    else:
        assert re.fullmatch(case.stderr, event["stderr"])
        assert event["stderr"].isprintable()


def test_an_upload_arrives_whole(site: Site) -> None:
    """5 MiB of all byte values come out of php://input as nginx got them."""
    page = site.proxied.fetch("/upload.php?whole", method="POST", body=UPLOAD)
    expected = {"method": "POST", "length": len(UPLOAD), "sha256": hashlib.sha256(UPLOAD).hexdigest()}
    assert json.loads(page.body) == expected


def test_a_download_arrives_whole(site: Site) -> None:
    """50 MiB come through as php-fpm made them."""
    page = site.proxied.fetch("/download.php?whole")
    expected = b"".join(hashlib.sha256(str(number).encode()).digest() * 2048 for number in range(800))
    assert len(page.body) == DOWNLOAD_BYTES
    assert hashlib.sha256(page.body).digest() == hashlib.sha256(expected).digest()


def test_a_kept_connection_carries_several_requests(fresh_site: Site) -> None:
    """With fastcgi_keep_conn one connection of nginx carries many requests: each has its event, and there is one
    connection number for all."""
    uris = [f"/kept/hello.php?id={number}" for number in range(10)]
    for uri in uris:
        assert fresh_site.proxied.fetch(uri).body == b"hello " + uri.partition("=")[2].encode() + b"\n"
    events = fresh_site.proxy.wait_for("request", count=len(uris))
    assert [event["uri"] for event in events] == uris
    assert {event["conn"] for event in events} == {1}
    assert not fresh_site.proxy.events("close")


def test_a_client_that_leaves_in_the_middle_of_a_response(site: Site) -> None:
    """When nginx gives up a response because its client left, the event says so, and the next request is fine."""
    uri = "/endless.php?left"
    with site.proxied.begin(uri) as sock:
        assert sock.recv(1).startswith(b"H")
    event = site.request_event(uri)
    assert event["incomplete"] in ("client left", "reset by client")
    assert event["status"] == 200
    assert "app_status" not in event
    assert site.proxied.fetch("/hello.php?id=after").body == b"hello after\n"


def test_a_client_that_leaves_before_the_response(site: Site) -> None:
    """When nginx gives up before php-fpm has said anything, the event has no status, and says who left."""
    gate = site.gate()
    with site.proxied.begin(gate.script):
        gate.wait_until_started()
    event = site.request_event(gate.script)
    gate.open()
    assert event["incomplete"] == "client left"
    assert "status" not in event
    assert "ttfb_s" not in event
    assert site.proxied.fetch("/hello.php?id=next").body == b"hello next\n"


def agree(access: Record, event: Record) -> bool:
    """nginx's line and the proxy's event tell the same of a request."""
    keys = {
        "uri": "uri",
        "method": "method",
        "upstream_status": "status",
        "upstream_bytes_sent": "c2s_bytes",
        "upstream_bytes_received": "s2c_bytes",
    }
    return all(access[nginx_key] == str(event[key]) for nginx_key, key in keys.items())


def by_uri(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: str(record["uri"]))


def test_events_match_the_access_log(fresh_site: Site) -> None:
    """Request by request, the proxy's events and nginx's access log have the same URI, method, status, and the same
    bytes sent and received, to the byte."""
    cases = [case for case in CASES.values() if not case.uri.startswith("/kept/")]
    cases += [Case(f"/hello.php?id={'x' * number}", 200) for number in range(0, 700, 7)]
    for case in cases:
        assert fresh_site.proxied.fetch(case.uri, method=case.method, body=case.body).status == case.status
    until(lambda: len(fresh_site.proxied.accesses()) == len(cases), "nginx's log")
    events = fresh_site.proxy.wait_for("request", count=len(cases))
    pairs = list(zip(by_uri(fresh_site.proxied.accesses()), by_uri(events), strict=True))
    assert [pair for pair in pairs if not agree(*pair)] == []


def test_events_match_the_access_log_under_load(fresh_site: Site) -> None:
    """After seconds of requests at full speed there are as many events as lines in nginx's access log, every status
    is 200, wrk saw no other, and nothing was dropped."""
    # nginx itself would give up what is under way when wrk stops: /patient/ does not.
    url = f"http://127.0.0.1:{fresh_site.proxied.port}/patient/hello.php"
    done = run([program("wrk"), "-t", "2", "-c", "8", "-d", "3s", url])
    assert done.returncode == 0, done.stderr
    assert b"Non-2xx" not in done.stdout
    assert fresh_site.proxied.fetch("/patient/hello.php?id=last").status == 200
    fresh_site.request_event("/patient/hello.php?id=last")
    until(
        lambda: len(fresh_site.proxied.accesses()) == len(fresh_site.proxy.events("request")),
        "as many events as lines in nginx's log",
    )
    events = fresh_site.proxy.events("request")
    assert {event.get("status") for event in events} == {200}
    assert not fresh_site.proxy.events("dropped")
    assert fresh_site.proxy.stop() == 0
    (summary,) = fresh_site.proxy.events("summary")
    assert (summary["requests"], summary["incomplete"], summary["dropped"]) == (len(events), 0, 0)


def test_the_error_log_has_nothing_new(fresh_site: Site) -> None:
    """For the same requests nginx logs the same errors with the proxy as without."""
    for case in CASES.values():
        for front in (fresh_site.direct, fresh_site.proxied):
            front.fetch(case.uri, method=case.method, body=case.body)
    expected = len(error_lines(fresh_site.direct))
    until(lambda: len(error_lines(fresh_site.proxied)) >= expected, "the last error")
    assert error_lines(fresh_site.proxied) == error_lines(fresh_site.direct)
    assert "Primary script unknown" in error_lines(fresh_site.direct)[0]
