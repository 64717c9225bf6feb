"""What the help and the man page of each command have besides its docstring: how it is called, and examples.

Rules: each command has two examples or more; each of them works as it stands, where there are such sockets
(tests/e2e/test_examples.py runs them). A command to try comes before one that needs root.
"""

from __future__ import annotations

from typing import NamedTuple

PHP = "/run/php/php8.2-fpm.sock"


class Example(NamedTuple):
    """A command line, and what it does."""

    does: str
    line: str


class Page(NamedTuple):
    """Of one command."""

    usage: tuple[str, ...]
    """What follows the command's name, each way."""
    examples: tuple[Example, ...]


_WHICH = "[--proxy PROXY | --control PATH]"

PAGES: dict[tuple[str, ...], Page] = {
    (): Page(
        ("COMMAND [OPTIONS] [ARGUMENTS]",),
        (
            Example("See what it does, on this machine alone:", "udsproxy demo"),
            Example("Show what passes through the socket of php-fpm:", f"sudo udsproxy tap {PHP}"),
            Example("Read about one command:", "udsproxy help tap"),
        ),
    ),
    ("run",): Page(
        ("[OPTIONS] LISTEN UPSTREAM", "[OPTIONS] --config FILE"),
        (
            Example(
                "Stand in front of php-fpm; nginx connects to /run/php/seen.sock:",
                f"sudo -u www-data udsproxy run /run/php/seen.sock {PHP}",
            ),
            Example(
                "Write a log for programs, and give the clients a server of two workers:",
                f"udsproxy run /tmp/try.sock {PHP} --log json --fault workers=2",
            ),
            Example("Check a configuration:", "udsproxy run --config /etc/udsproxy.toml --check"),
        ),
    ),
    ("tap",): Page(
        ("[OPTIONS] PATH", "[OPTIONS] PATH -- COMMAND [ARGUMENT...]"),
        (
            Example("Show one minute of requests to php-fpm:", f"sudo udsproxy tap {PHP} --for 60s"),
            Example(
                "Show what one command causes, with all FastCGI parameters:",
                f"sudo udsproxy tap {PHP} -v -- curl -s http://localhost/index.php",
            ),
            Example(
                "Count what nginx logs about the socket as well, and write a JSON log:",
                f"sudo udsproxy tap {PHP} --nginx-log /var/log/nginx/error.log --log-file seen.json",
            ),
            Example("Give a server its path back after udsproxy was killed:", f"sudo udsproxy tap --restore {PHP}"),
        ),
    ),
    ("state",): Page(
        ("[OPTIONS] [PATH...]",),
        (
            Example("List all sockets, the fullest queue first:", "sudo udsproxy state"),
            Example(
                "Watch one queue, and what each worker does:", f"sudo udsproxy state {PHP} --watch --interval 200ms"
            ),
        ),
    ),
    ("doctor",): Page(
        ("[OPTIONS] PATH",),
        (
            Example("Examine a socket:", f"sudo udsproxy doctor {PHP}"),
            Example(
                "Compute whether its queue holds 200 requests per second of 50 ms each:",
                f"sudo udsproxy doctor {PHP} --rate 200 --time 50ms --stall 2s",
            ),
        ),
    ),
    ("explain",): Page(
        ("[ERROR...]", "[-f] FILE...", "[-f] -"),
        (
            Example("Explain what connect() means by EAGAIN:", "udsproxy explain connect EAGAIN"),
            Example(
                "Sum up two logs, in order of time, and explain their errors:",
                "udsproxy explain /var/log/nginx/error.log /var/log/php8.2-fpm.log",
            ),
            Example(
                "Explain errors as they are logged:",
                "udsproxy explain -f /var/log/nginx/error.log",
            ),
        ),
    ),
    ("fault",): Page(
        ("COMMAND [OPTIONS] [ARGUMENTS]",),
        (
            Example("List the faults of the proxies that run:", "udsproxy fault list"),
            Example("Make one answer in ten late:", "udsproxy fault add 'latency=250ms p=0.1'"),
        ),
    ),
    ("fault", "list"): Page(
        ("[OPTIONS]",),
        (
            Example("List the faults of all proxies that run:", "udsproxy fault list"),
            Example("Print those of one proxy as JSON:", "udsproxy fault list --proxy try.sock --json"),
        ),
    ),
    ("fault", "kinds"): Page(
        ("",),
        (
            Example("Read about all of them:", "udsproxy fault kinds | less"),
            Example("Read about one:", "udsproxy fault kinds | grep -A 5 ^latency"),
        ),
    ),
    ("fault", "add"): Page(
        (f"{_WHICH} FAULT...",),
        (
            Example(
                "Delay one answer in ten of a script:",
                "udsproxy fault add 'latency=250ms if script=/slow.php p=0.1'",
            ),
            Example(
                "Refuse everything for half a minute, at one proxy of several:",
                "udsproxy fault add 'refuse for=30s' --proxy try.sock",
            ),
        ),
    ),
    ("fault", "remove"): Page(
        (f"{_WHICH} NAME...",),
        (
            Example("Remove a fault:", "udsproxy fault remove latency"),
            Example(
                "Remove two, of one proxy of several:", "udsproxy fault remove latency refuse --proxy try.sock"
            ),
        ),
    ),
    ("fault", "clear"): Page(
        (_WHICH,),
        (
            Example("Remove all faults of the running proxy:", "udsproxy fault clear"),
            Example("Remove all faults of one proxy of several:", "udsproxy fault clear --proxy try.sock"),
        ),
    ),
    ("fault", "enable"): Page(
        (f"{_WHICH} NAME",),
        (
            Example("Switch a fault on again:", "udsproxy fault enable latency"),
            Example("The same at one proxy of several:", "udsproxy fault enable latency --proxy try.sock"),
        ),
    ),
    ("fault", "disable"): Page(
        (f"{_WHICH} NAME",),
        (
            Example("Switch a fault off for now:", "udsproxy fault disable latency"),
            Example("The same at one proxy of several:", "udsproxy fault disable latency --proxy try.sock"),
        ),
    ),
    ("request",): Page(
        ("[OPTIONS] SOCKET",),
        (
            Example(
                "Ask php-fpm for a page, without nginx:",
                f"sudo udsproxy request {PHP} --root /var/www/html --script /index.php",
            ),
            Example("Send 1000 requests, 20 at the same time:", "udsproxy request /tmp/app.sock -n 1000 -c 20"),
        ),
    ),
    ("serve",): Page(
        ("[OPTIONS] SOCKET",),
        (
            Example("Serve FastCGI with four workers:", "udsproxy serve /tmp/app.sock"),
            Example(
                "Be a server that is slow and small:",
                "udsproxy serve /tmp/app.sock --workers 2 --backlog 2 --delay 500ms",
            ),
        ),
    ),
    ("demo",): Page(
        ("",),
        (
            Example("See it:", "udsproxy demo"),
            Example("Read it page by page:", "udsproxy demo 2>&1 | less"),
        ),
    ),
    ("help",): Page(
        ("[COMMAND...]",),
        (
            Example("Read about a command:", "udsproxy help tap"),
            Example("Read about a command of a command:", "udsproxy help fault add"),
        ),
    ),
    ("man",): Page(
        ("[COMMAND...]", "--directory DIRECTORY"),
        (
            Example("Read the man page of a command:", "udsproxy man tap | man -l -"),
            Example("Install all man pages:", "sudo udsproxy man --directory /usr/local/share/man/man1"),
        ),
    ),
    ("completion",): Page(
        ("bash|zsh|fish",),
        (
            Example("Have it in this shell, if it is bash:", 'eval "$(udsproxy completion bash)"'),
            Example(
                "Have it in each fish of this user:",
                "udsproxy completion fish > ~/.config/fish/completions/udsproxy.fish",
            ),
        ),
    ),
}
