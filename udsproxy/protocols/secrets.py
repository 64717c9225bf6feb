"""What of a request's parameters may be shown: the one table, and the one that decides by it.

Rules:

* What is not known to be public is a secret. A parameter's value is shown only under a name of `_PUBLIC`, or one
  that the user has named; Cookie and Authorization have too many names to list, and a name that arrives damaged is
  on no list of secrets.
* Which bytes of a value are hidden is decided by those before them: hiding the start of a value hides the start of
  what is hidden of the whole. So the same bytes are shown however a stream is cut.
* A length that lies makes a value run on into the pairs behind it. It shows by the lengths of the next pair: they
  are control characters, but where its name is longer than 31 bytes; then by that name, which is a long run of the
  characters of names. From there on nothing is shown.
* Redaction is by kind: a query is a query in REQUEST_URI, Referer and REDIRECT_URL, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from udsproxy.events import MASK, printable

Kind = Literal["text", "uri", "query"]
"""What a value is: a URI may hold a query, a query is one."""

_PUBLIC: dict[Kind, str] = {
    "query": "QUERY_STRING ARGS",
    "uri": """
        REQUEST_URI DOCUMENT_URI UNENCODED_URL URL URI SCRIPT_URL SCRIPT_URI
        HTTP_REFERER HTTP_X_ORIGINAL_URL HTTP_X_ORIGINAL_URI HTTP_X_REWRITE_URL HTTP_X_FORWARDED_URI
        HTTP_X_REQUEST_URI HTTP_DESTINATION HTTP_CONTENT_LOCATION
        """,
    "text": """
        REQUEST_METHOD REQUEST_SCHEME REQUEST_TIME REQUEST_TIME_FLOAT REQUEST_ID REQUEST_FILENAME REQUEST_COMPLETION
        SCRIPT_NAME SCRIPT_FILENAME PATH_INFO PATH_TRANSLATED ORIG_PATH_INFO ORIG_PATH_TRANSLATED ORIG_SCRIPT_NAME
        ORIG_SCRIPT_FILENAME PHP_SELF DOCUMENT_ROOT CONTEXT_PREFIX CONTEXT_DOCUMENT_ROOT
        CONTENT_TYPE CONTENT_LENGTH GATEWAY_INTERFACE STATUS HANDLER ERROR_NOTES UNIQUE_ID
        SERVER_NAME SERVER_ADDR SERVER_PORT SERVER_PROTOCOL SERVER_SOFTWARE SERVER_ADMIN SERVER_SIGNATURE HTTPS
        REMOTE_ADDR REMOTE_PORT REMOTE_HOST REMOTE_USER REMOTE_IDENT AUTH_TYPE FCGI_ROLE
        SSL_PROTOCOL SSL_CIPHER SSL_SERVER_NAME PATH PWD USER HOME TZ LANG
        FCGI_MAX_CONNS FCGI_MAX_REQS FCGI_MPXS_CONNS
        HTTP_HOST HTTP_USER_AGENT HTTP_ACCEPT HTTP_ACCEPT_CHARSET HTTP_ACCEPT_ENCODING HTTP_ACCEPT_LANGUAGE
        HTTP_ACCEPT_RANGES HTTP_CACHE_CONTROL HTTP_CONNECTION HTTP_CONTENT_ENCODING HTTP_CONTENT_LANGUAGE
        HTTP_CONTENT_LENGTH HTTP_CONTENT_TYPE HTTP_DATE HTTP_DEPTH HTTP_DNT HTTP_EXPECT HTTP_FORWARDED HTTP_FROM
        HTTP_IF_MATCH HTTP_IF_MODIFIED_SINCE HTTP_IF_NONE_MATCH HTTP_IF_RANGE HTTP_IF_UNMODIFIED_SINCE
        HTTP_KEEP_ALIVE HTTP_MAX_FORWARDS HTTP_ORIGIN HTTP_OVERWRITE HTTP_PRAGMA HTTP_PRIORITY HTTP_RANGE
        HTTP_SAVE_DATA HTTP_TE HTTP_TRAILER HTTP_TRANSFER_ENCODING HTTP_UPGRADE HTTP_UPGRADE_INSECURE_REQUESTS
        HTTP_VIA HTTP_PURPOSE HTTP_SEC_FETCH_DEST HTTP_SEC_FETCH_MODE HTTP_SEC_FETCH_SITE HTTP_SEC_FETCH_USER
        HTTP_SEC_PURPOSE HTTP_SEC_GPC HTTP_SEC_CH_UA HTTP_SEC_CH_UA_MOBILE HTTP_SEC_CH_UA_PLATFORM
        HTTP_SEC_WEBSOCKET_VERSION HTTP_X_REQUESTED_WITH HTTP_X_REAL_IP HTTP_X_CLIENT_IP HTTP_TRUE_CLIENT_IP
        HTTP_X_FORWARDED_FOR HTTP_X_FORWARDED_HOST HTTP_X_FORWARDED_PORT HTTP_X_FORWARDED_PREFIX
        HTTP_X_FORWARDED_PROTO HTTP_X_FORWARDED_SCHEME HTTP_X_FORWARDED_SERVER HTTP_X_FORWARDED_SSL
        HTTP_X_HTTP_METHOD_OVERRIDE HTTP_X_REQUEST_ID HTTP_X_CORRELATION_ID HTTP_X_REQUEST_START
        HTTP_X_VARNISH HTTP_X_CACHE HTTP_TRACEPARENT HTTP_X_B3_TRACEID HTTP_X_B3_SPANID HTTP_X_B3_SAMPLED
        HTTP_X_AMZN_TRACE_ID HTTP_CF_CONNECTING_IP HTTP_CF_IPCOUNTRY HTTP_CF_RAY HTTP_CF_VISITOR HTTP_CDN_LOOP
        """,
}

_MASKED_NAMES = (
    "HTTP_COOKIE HTTP_COOKIE2 HTTP_AUTHORIZATION HTTP_PROXY_AUTHORIZATION PHP_AUTH_USER PHP_AUTH_PW PHP_AUTH_DIGEST"
)
"""Names that may be shown in bytes as they come, though their values may not."""

_REDIRECT = b"REDIRECT_"
"""Apache's prefix, once for each internal redirect."""

_WORD = (
    "pass(?:word|wd|phrase)?|pwd|secret|token|auth(?:orization|entication)?|sess(?:ion)?|cookie|credentials?|signature"
    "|api_?key|access_?key|private|jwt|assertion|saml|otp|csrf|xsrf|bearer"
)
_SECRET_WORDS = re.compile(
    f"{_WORD}|(?:^|[^a-z0-9])(?:pw|sid|key|code|pin|sig|ticket|nonce|state)(?:$|[^a-z0-9])|%".encode(),
    re.IGNORECASE,
)
"""In the key of a query's field: its value is a secret. A key that is escaped cannot be read here."""
_AFTER_WORD = re.compile(f"(?:_?(?:{_WORD}|id|key|name|user|digest|data|file|[0-9]))*".encode(), re.IGNORECASE)
"""What may stand behind such a word in a name. Anything else may be the value."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_RUNS = ((16, re.compile(rb"[A-Z0-9_]{16,}")), (32, re.compile(rb"[A-Za-z0-9_]{32,}")))
"""With an underscore these are taken for names; without it they are numbers and hashes."""
_END_OF_NAME = re.compile(rb"_(?:AUTH|COOKIE|DIGEST|KEY|PASS|PW|SECRET|SESS|SID|TOKEN)")
"""How names of secrets end, in a value that runs on into them though their lengths are missing."""
_KEY = re.compile(rb"[?&;]([^?&;=]*)=")
_NAME = re.compile(rb"[A-Z][A-Z0-9_]*")
_A_NAME = re.compile(rb"[A-Za-z0-9_.:-]+")

_MAX_TOLD, _SHORT = 256, 200

MAX_NAME = 31
"""Bytes of a name that is not known and is shown. The length before it is a control character: no printable secret
that was taken for a pair has one."""


def plain_name(name: bytes) -> bytes:
    """Without the prefixes of redirects."""
    while name.startswith(_REDIRECT):
        name = name[len(_REDIRECT) :]
    return name


class Masking:
    """What may be shown. See the rules above."""

    def __init__(self, redact: Iterable[str] = (), show: Iterable[str] = ()) -> None:
        """``redact``: names that are secret besides; ``show``: names that are not."""
        kinds: dict[bytes, Kind] = {
            name.encode(): kind for kind, names in _PUBLIC.items() for name in names.split()
        }
        shown = _encoded(show)
        self.shows_bodies = b"STDIN" in shown
        """Of requests: those of forms have passwords."""
        for name in shown:
            kinds.setdefault(plain_name(name), "text")
        self._hides_queries = False
        for name in _encoded(redact):
            kind = kinds.pop(plain_name(name), None)
            self._hides_queries = self._hides_queries or kind == "query"
        if self._hides_queries:
            kinds = {name: kind for name, kind in kinds.items() if kind != "query"}
        self._kinds = kinds
        self._told: dict[tuple[bytes, bytes], str] = {}
        """What was told lately: methods, scripts and URIs come again and again."""
        known = [*kinds, *_MASKED_NAMES.encode().split(), _REDIRECT]
        self._starts = frozenset(name[:size] for name in known for size in range(len(name) + 1))

    def kind(self, name: bytes) -> Kind | None:
        """Of the values of this name; None: it is not known to be public."""
        return self._kinds.get(plain_name(name))

    def may_begin(self, start: bytes) -> bool:
        """Some name that is known begins so."""
        return plain_name(start) in self._starts

    def hidden(self, kind: Kind, value: bytes) -> list[tuple[int, int]]:
        """Where in a public value there is something that must not be shown: in order, none within another."""
        end = len(value)
        broken = self.broken_at(value)
        if broken is not None:
            end = broken
        spans: list[tuple[int, int]] = []
        if kind == "uri" and self._hides_queries and (query := value.find(b"?", 0, end)) >= 0:
            spans.append((query + 1, end))
        elif kind == "uri":
            spans += self._fields(value, end)
        elif kind == "query":
            spans += [(first - 1, last - 1) for first, last in self._fields(b"?" + value, end + 1)]
        if broken is not None:
            spans.append((broken, len(value)))
        return [span for span in spans if span[0] < span[1]]

    @staticmethod
    def broken_at(value: bytes) -> int | None:
        """From where on a value seems to be no longer one, but the pairs behind it."""
        control = _CONTROL.search(value)
        ends = [] if control is None else [control.start()]
        name = _END_OF_NAME.search(value)
        if name is not None:
            ends.append(name.end())
        for size, runs in _RUNS if b"_" in value else ():
            for run in runs.finditer(value):
                underscore = value.find(b"_", run.start(), run.end())
                if underscore >= 0:
                    ends.append(max(run.start() + size, underscore + 1))
                    break
        return min(ends, default=None)

    @staticmethod
    def _fields(query: bytes, end: int) -> list[tuple[int, int]]:
        """The values of fields whose key says that they are secret."""
        spans: list[tuple[int, int]] = []
        for key in _KEY.finditer(query, 0, end):
            if spans and key.start() < spans[-1][1]:
                continue  # within the last one
            if _SECRET_WORDS.search(key[1]):
                last = query.find(b"&", key.end(), end)
                spans.append((key.end(), end if last < 0 else last))
        return spans

    def text(self, name: bytes, value: bytes) -> str:
        """A value as text, what is hidden of it as `MASK`."""
        known = self._told.get((name, value))
        if known is not None:
            return known
        told = self._text(name, value)
        if len(value) <= _SHORT:
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            self._told[name, value] = told
        return told

    def _text(self, name: bytes, value: bytes) -> str:
        kind = self.kind(name)
        if kind is None:
            return MASK
        spans = self.hidden(kind, value)
        if not spans:
            return printable(value)
        parts, at = [], 0
        for first, last in spans:
            parts += [printable(value[at:first]), MASK]
            at = last
        return "".join([*parts, printable(value[at:])])

    def is_plausible(self, name: bytes, value: bytes) -> bool:
        """Do these seem to be a name and its value, as far as can be told?"""
        return _A_NAME.fullmatch(name) is not None and (self.kind(name) is None or _CONTROL.search(value) is None)

    def name_text(self, name: bytes) -> str:
        """A name as text; `MASK` where it may not be one."""
        plain = plain_name(name)
        if plain in self._kinds:
            return printable(name)
        if len(plain) > MAX_NAME or not _NAME.fullmatch(plain):
            return MASK
        word = _SECRET_WORDS.search(plain)
        if word is None or plain in self._starts or _AFTER_WORD.fullmatch(plain, word.end()):
            return printable(name)
        return printable(name[: len(name) - len(plain) + word.end()]) + MASK


def _encoded(names: Iterable[str]) -> set[bytes]:
    found = {name.encode("utf-8", "surrogateescape") for name in names}
    return found | {name.upper() for name in found}
