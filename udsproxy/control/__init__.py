"""Control of a running process: HTTP with JSON over a Unix socket of its own.

- ``place``: where that socket is, and finding the one of a process that runs
- ``api``: what can be asked
- ``serving``: answering, beside the traffic
- ``client``: asking

Rules: the socket's mode is 600, and that of a directory made for it 700; bad requests are answered in one line and
change nothing; nothing that goes wrong here touches the traffic.
"""
