"""The end-to-end tests: the real programs (nginx, php-fpm, redis, socat, wrk) with a real udsproxy between them.

Rules: no mocks; a program that is missing is a failure. Everything lives on a `tests.stage.Stage`, which ends
it and removes it. Tests wait for conditions, `tools.LIMIT_S` at most; no outcome hangs on how fast the machine is.
"""
