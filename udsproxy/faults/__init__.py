"""Faults: what is done wrong on purpose. Nothing here does I/O, or reads a clock.

- ``kinds``: every fault, its attributes, and where it acts
- ``rules``: a fault with when, how likely, how often; which of them apply to a connection
- ``spelling``: how people write a rule
- ``stages``: the stream faults, pure functions from timed chunks to timed chunks
- ``line``: one direction of a connection: stages one after the other, and what waits in them
- ``requests``: which bytes are whose request's, and the faults of FastCGI
- ``path``: all of that for one connection

Rules: with no rule, the proxy's path is the same as if this room did not exist. The same seed and the same
traffic give the same faults, whatever the concurrency: chance is drawn for (seed, rule, connection, request), never
in order of time.
"""
