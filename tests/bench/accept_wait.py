"""``python -m tests.bench.accept_wait``: how near ``accept_wait_s`` is to the truth, with a server that queues.

The server, a process of its own, accepts one connection at a time, stamps that, works for up to 3 ms, answers. The
clients stamp their connect(). Queues are first come, first served: the n-th connection of either is the n-th of
udsproxy. So the truth is the server's stamp less the client's, and has udsproxy's own way to the server within it.

Rules: 10,000 connections far from the queue's limit, and as many near it. Exit status as of the speed benchmark.
"""

import json
import os
import random
import socket
import threading
import time
from statistics import median, quantiles

from tests.bench.command import main_guard
from tests.bench.contenders import udsproxy_argv
from tests.bench.report import machine
from tests.stage import Stage, StageError

CONNECTIONS = 10_000
CLIENTS = 12
WORK_S = 0.003
TARGET_S = 0.001


def serve(path: str, backlog: int, stamps: str) -> int:
    """Start the server; returns its pid. Its stamps (ns, monotonic) are in the file when it has ended."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(backlog)
    pid = os.fork()
    if pid:
        listener.close()
        return pid
    try:
        chance, seen = random.Random(1), list[int]()
        while len(seen) < CONNECTIONS:
            connection, _ = listener.accept()
            seen.append(time.monotonic_ns())
            connection.recv(100)
            time.sleep(chance.random() * WORK_S * (chance.random() < 0.2))
            connection.sendall(b"ok")
            connection.close()
        with open(stamps, "w", encoding="ascii") as file:
            json.dump(seen, file)
    finally:
        os._exit(0)  # the stage is the parent's


def connect_all(path: str) -> list[int]:
    """Every connection, from several threads; the stamps, in the order of time."""
    stamps: list[int] = []
    left = iter(range(CONNECTIONS))

    def client() -> None:
        for _ in left:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                stamps.append(time.monotonic_ns())
                sock.sendall(b"x")
                sock.recv(10)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(stamps)


def measure(stage: Stage, name: str, backlog: int) -> str:
    """One run; returns a line."""
    upstream, listen, log = (stage.path(name, file) for file in ("up.sock", "p.sock", "log.json"))
    pid = serve(upstream, backlog, stage.path(name, "stamps"))
    argv = udsproxy_argv(listen, upstream, "--log", "json", "--log-file", log)
    process = stage.spawn(f"udsproxy ({name})", argv, stage.path(name, "output"))
    while not (os.path.exists(log) and os.path.getsize(log)):  # it listens (to connect would count)
        stage.check_alive()
        time.sleep(0.05)
    connected = connect_all(listen)
    os.waitpid(pid, 0)
    process.terminate()
    process.wait(20)
    with open(stage.path(name, "stamps"), encoding="ascii") as file:
        accepted = json.load(file)
    told = {}
    with open(log, encoding="utf-8") as file:
        for line in file:
            event = json.loads(line)
            if event["event"] == "close" and "accept_wait_s" in event:
                told[event["conn"]] = event["accept_wait_s"], event["accept_error_s"]
    if len(told) < CONNECTIONS:
        raise StageError(f"{CONNECTIONS - len(told)} of {CONNECTIONS} connections have no accept_wait_s")
    truths = [(at - since) / 1e9 for since, at in zip(connected, accepted, strict=True)]
    wrong = [abs(told[number + 1][0] - truth) for number, truth in enumerate(truths)]
    p95 = quantiles(wrong, n=20)[-1]
    within = sum(off <= told[number + 1][1] + 0.0002 for number, off in enumerate(wrong)) / CONNECTIONS
    verdict = "met" if p95 < TARGET_S else "MISSED"
    waits = f"{median(truths) * 1e3:.2f} ms (95th percentile {quantiles(truths, n=20)[-1] * 1e3:.2f})"
    figure = f"{median(wrong) * 1e3:.3f} ms, {p95 * 1e3:.3f} at the 95th; target < {TARGET_S * 1e3:g} ms"
    said = f"{within:.1%} within what was said and 0.2 ms"
    return f"  {verdict:6}  {name}, backlog {backlog}: waits of {waits}, wrong by {figure}; {said}"


def main() -> None:
    print(machine([]))
    print(f"{CONNECTIONS:,} connections, {CLIENTS} at a time")
    for name, backlog in (("far", 511), ("near", 11)):
        with Stage() as stage:
            print(measure(stage, name, backlog), flush=True)


if __name__ == "__main__":
    main_guard(main)
