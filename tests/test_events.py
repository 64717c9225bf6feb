"""What may leave the traffic's path as text."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.events import errno_message, errno_name, printable


@given(st.binary() | st.text())
def test_nothing_that_drives_a_terminal_gets_out(data: bytes | str) -> None:
    """Printable text has no control, format, surrogate or line separator character, whatever came in."""
    assert not {unicodedata.category(c) for c in printable(data)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_readable_text_stays_readable() -> None:
    """UTF-8 text is shown as it is; only what is not printable is escaped."""
    assert printable("/café/页".encode()) == "/café/页"
    assert printable(b"\x1b[31mred\x07\x7f") == r"\x1b[31mred\x07\x7f"
    assert printable(b"\xff\xfe") == r"\xff\xfe"
    assert printable("\u202eevil") == r"\u202eevil"


def test_errno_in_words() -> None:
    """An errno has its name and the kernel's words; an unknown one has its number."""
    assert (errno_name(11), errno_message(11)) == ("EAGAIN", "Resource temporarily unavailable")
    assert errno_name(9999) == "9999"
