"""The protocols that can be decoded. A new one adds its entry here and nothing else outside its own modules."""

from __future__ import annotations

from udsproxy.protocols import fastcgi_decoder
from udsproxy.protocols.decoder import AutoDecoder, Decoder, ProtocolEntry, RawDecoder, Scope

PROTOCOLS = (ProtocolEntry(fastcgi_decoder.PROTOCOL, fastcgi_decoder.recognise, fastcgi_decoder.FastCGIDecoder),)


def make_decoder(choice: str, scope: Scope) -> Decoder:
    """The decoder for one connection. ``choice``: ``auto``, ``raw``, or a protocol's name.

    Raises KeyError for a name that is none of these.
    """
    if choice == "raw":
        return RawDecoder()
    if choice == "auto":
        return AutoDecoder(scope, PROTOCOLS)
    return {entry.name: entry for entry in PROTOCOLS}[choice].decoder(scope)
