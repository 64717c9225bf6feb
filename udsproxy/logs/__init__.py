"""Lines of other programs' logs, as records. What they mean is `udsproxy.explain`'s.

Rules: sans I/O. A parser never raises, whatever the line is, and returns None for a line of another program. What a
visitor wrote (a request, a host name, a file's name, a script's message) never decides which record a line becomes.
"""
