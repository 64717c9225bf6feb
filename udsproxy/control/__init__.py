"""Control of a running process: HTTP with JSON over a Unix socket of its own.

- ``place``: where that socket is, and finding the one of a process that runs
- ``peers``: who may control whom
- ``api``: what can be asked
- ``serving``: answering, beside the traffic
- ``client``: asking

Rules: the socket's mode is 600, and that of a directory made for it 700; besides, each client's user is looked at
(SO_PEERCRED); bad requests are answered in one line and change nothing; nothing that goes wrong here touches the
traffic.
"""
