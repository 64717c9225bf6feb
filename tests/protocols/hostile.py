"""Streams with secrets in them, whole and damaged: the same stream for the same number.

Rules: the bytes of secrets stand nowhere else, so that any `WINDOW` of them that is seen anywhere is a leak. Damage
is what happens to bytes on a wire or by a bug: flips, other bytes, some missing, some too many, lengths that lie,
an end too early. It is never a secret that is moved under another name: no less than the lengths and the name
before it (13 bytes or more) would have to be cut out, and what is left is a good stream with another meaning.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from udsproxy.protocols import fastcgi as wire

WINDOW = 4
MOST_MISSING = 8
"""Bytes that are cut out at one place."""

SECRET_NAMES = (
    b"HTTP_COOKIE", b"HTTP_AUTHORIZATION", b"REDIRECT_HTTP_AUTHORIZATION", b"HTTP_PROXY_AUTHORIZATION",
    b"REDIRECT_REDIRECT_REDIRECT_HTTP_AUTHORIZATION", b"REDIRECT_" * 5 + b"HTTP_COOKIE", b"PHP_AUTH_DIGEST",
    b"PHP_AUTH_PW", b"DB_PASSWORD", b"APP_SECRET", b"HTTP_X_CSRF_TOKEN", b"HTTP_X_API_KEY", b"HTTP_X_SID",
    b"HTTP_X_AMZ_SECURITY_TOKEN",
    b"HTTP_" + b"VERY_" * 26 + b"LONG_TOKEN", b"HTTP_" + b"X" * 290,
)  # fmt: skip
PUBLIC = (
    (b"REQUEST_METHOD", (b"GET", b"POST")),
    (b"REQUEST_URI", (b"/", b"/index.php?a=1&b=2", b"/shop/list?" + b"page=1&" * 12, b"/" + b"abc/" * 60)),
    (b"SCRIPT_NAME", (b"/index.php", b"/shop/list.php")),
    (b"SCRIPT_FILENAME", (b"/srv/www/index.php", b"/srv/" + b"dir/" * 40 + b"list.php")),
    (b"QUERY_STRING", (b"", b"a=1&b=2", b"page=1&" * 12)),
    (b"DOCUMENT_URI", (b"/index.php",)),
    (b"SERVER_PROTOCOL", (b"HTTP/1.1",)),
    (b"REMOTE_ADDR", (b"192.0.2.7",)),
    (b"HTTP_HOST", (b"www.example.org",)),
    (b"HTTP_USER_AGENT", (b"Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/115.0", b"curl/7.88.1")),
    (b"HTTP_ACCEPT_LANGUAGE", (b"en-US,en;q=0.5",)),
    (b"HTTP_REFERER", (b"http://www.example.org/a?b=c",)),
    (b"APP_ENV", (b"production",)),
)
_LETTERS = b"QZXJKqzxjk"
_ALPHABETS = (
    _LETTERS,
    _LETTERS + b"0123456789",
    b"QZXJK_0123456789",
    _LETTERS + b"=;+/~^",
    bytes(range(0x80, 0x100)),
)
"""Of secrets: letters that next to each other are in no word here; one that are no text."""
_OWN = _LETTERS + bytes(range(0x80, 0x100))
_PUBLIC = {each[i : i + WINDOW] for _, some in PUBLIC for each in some for i in range(len(each) - WINDOW + 1)}


_ANY, _LETTER = r"[QZXJKqzxjk0-9_=;+/~^\x80-\xff]", r"[QZXJKqzxjk\x80-\xff]"
_RUN = re.compile(f"{_LETTER}{_ANY}{{0,2}}{_LETTER}{_ANY}*".encode())
"""Where a window may be: it begins up to three bytes before that."""


@dataclass
class Hostile:
    """A stream of a client, and what must not be seen of it."""

    data: bytes
    windows: frozenset[bytes]

    def leaks(self, text: bytes) -> list[bytes]:
        """What is seen of it in this text, as it is or escaped."""
        found = []
        for each in {text, _unescaped(text)}:
            for run in _RUN.finditer(each):
                starts = range(max(0, run.start() - WINDOW + 1), run.end() - WINDOW + 1)
                found += [each[i : i + WINDOW] for i in starts if each[i : i + WINDOW] in self.windows]
        return found


def _unescaped(text: bytes) -> bytes:
    if b"\\x" not in text:
        return text
    return re.sub(rb"\\{1,2}x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text)


def secret(rng: random.Random) -> bytes:
    """A value of bytes that are nowhere else."""
    size = rng.choice((4, 7, 12, 20, 32, 45, 60, 90, 126, 127, 128, 200, 300, 700))
    return bytes(rng.choices(rng.choice(_ALPHABETS), k=size))


def stream(number: int) -> Hostile:
    """One to three requests, one after the other or mixed, then damaged (one in eight is left whole)."""
    rng = random.Random(number)
    windows: set[bytes] = set()
    requests = [_request(rng, i + 1, windows) for i in range(rng.choice((1, 1, 1, 2, 3)))]
    if rng.random() < 0.5:
        data = b"".join(record for records in requests for record in records)
    else:
        data = b""
        while any(requests):
            data += rng.choice([records for records in requests if records]).pop(0)
    if number % 8:
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            data = _damage(rng, data)
    # What has less than two of its letters may be a number, or a name.
    return Hostile(
        data, frozenset(each for each in windows - _PUBLIC if len(each.translate(None, _OWN)) <= WINDOW - 2)
    )


def _request(rng: random.Random, number: int, windows: set[bytes]) -> list[bytes]:
    body = b"field=body&" * rng.choice((0, 1, 30))
    pairs = [(name, rng.choice(some)) for name, some in PUBLIC if rng.random() < 0.8]
    pairs += [(b"CONTENT_LENGTH", str(len(body)).encode())]
    for _ in range(rng.choice((1, 2, 3, 4))):
        value = secret(rng)
        windows |= {value[i : i + WINDOW] for i in range(len(value) - WINDOW + 1)}
        pairs.insert(rng.randrange(len(pairs) + 1), (rng.choice(SECRET_NAMES), value))
    records = [wire.encode_begin(number, flags=rng.choice((0, 1)))]
    records += _cut(rng, wire.PARAMS, number, _encode(rng, pairs))
    records += [wire.encode_record(wire.PARAMS, number)]
    records += _cut(rng, wire.STDIN, number, body)
    return [*records, wire.encode_record(wire.STDIN, number)]


def _encode(rng: random.Random, pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Pairs; sometimes a length takes four bytes without need, and that of a long name is told as nginx does."""
    out = b""
    for name, value in pairs:
        if len(name) > 255 and rng.random() < 0.7:
            size = bytes(((len(name) & 0xFF) | 0x80, 0, 0, len(name) & 0xFF)) if rng.random() < 0.3 else None
            lengths = size or (bytes((len(name) & 0x7F,)))
            out += lengths + wire.encode_pairs([(b"", value)])[1:][: (1 if len(value) < 128 else 4)] + name + value
        elif rng.random() < 0.1:
            out += b"".join((len(each) | 0x80000000).to_bytes(4, "big") for each in (name, value)) + name + value
        else:
            out += wire.encode_pairs([(name, value)])
    return out


def _cut(rng: random.Random, kind: int, number: int, content: bytes) -> list[bytes]:
    pieces, pos = [], 0
    most = rng.choice((65535, 65535, 400, 100, 30))
    while pos < len(content):
        size = rng.randint(1, most) if most < 65535 else most
        padding = rng.randrange(256) if rng.random() < 0.1 else rng.choice((None, 0))
        pieces.append(wire.encode_record(kind, number, content[pos : pos + size], padding=padding))
        pos += size
    return pieces


def _damage(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    at, how = rng.randrange(len(data)), rng.randrange(8)
    if how < 2:
        return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
    if how == 2:
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    if how == 3:
        return data[:at] + data[at + rng.randint(1, MOST_MISSING) :]
    if how == 4:
        return data[:at] + rng.randbytes(rng.randint(1, 12)) + data[at:]
    if how == 5:
        return data[:at]
    if how == 6:  # a field of a header
        headers = _headers(data)
        at = rng.choice(headers) + rng.choice((0, 1, 2, 3, 4, 5, 5, 6, 6, 7))
        return (
            data[:at] + bytes(((data[at] + rng.randint(1, 255)) & 0xFF,)) + data[at + 1 :]
            if at < len(data)
            else data
        )
    names = [data.find(name) for name in (*SECRET_NAMES, *(name for name, _ in PUBLIC)) if name in data]
    at = max(0, (rng.choice(names) if names else at) - rng.choice((1, 1, 2, 2, 3, 5)))  # a length
    return (
        data[:at]
        + bytes(((data[at] + rng.choice((1, 2, 5, 16, 32, 64, 255, 250, 240, 200))) & 0xFF,))
        + data[at + 1 :]
    )


def _headers(data: bytes) -> list[int]:
    """Where records begin, as far as that is so."""
    found, pos = [0], 0
    while pos + 8 <= len(data) and data[pos] == 1:
        found.append(pos)
        pos += 8 + int.from_bytes(data[pos + 4 : pos + 6], "big") + data[pos + 6]
    return found
