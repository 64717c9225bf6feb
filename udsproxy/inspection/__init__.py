"""What sockets and processes are at this moment, from sock_diag and /proc.

Rules: it only looks; nothing here touches a socket that is not its own. What may not be seen is left out, and
counted. A look at the whole machine takes milliseconds: where traffic must not wait for it, it is made in a process
of its own (`udsproxy.inspection.observer`).
"""
