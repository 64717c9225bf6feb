"""What nginx makes of the heads of CGI answers, and what udsproxy says of them."""

from __future__ import annotations

import socket
import threading

from tests.e2e.proxy import StartProxy
from tests.e2e.site import Front, run_nginx
from tests.e2e.tools import free_port, receive_all
from tests.protocols.heads import HEADS, Head
from tests.stage import Stage
from udsproxy.protocols import fastcgi as wire

_SERVER = """\
    fastcgi_buffer_size 64k;
    fastcgi_buffers 8 64k;
    server {{
        listen 127.0.0.1:{port};
        error_log {directory}/front.error;
        location / {{ fastcgi_pass unix:{upstream}; fastcgi_param REQUEST_URI $request_uri; }}
    }}
"""


def serve(listener: socket.socket, heads: list[Head]) -> None:
    """A FastCGI server that gives these answers, one after the other."""
    for head in heads:
        connection, _ = listener.accept()
        with connection:
            data = b""
            while not data.endswith(wire.encode_record(wire.STDIN, 1)):
                data += connection.recv(65536)
            connection.sendall(wire.encode_stream(wire.STDOUT, 1, head.data + head.body) + wire.encode_end(1))


def test_what_nginx_makes_of_a_head(stage: Stage, start_proxy: StartProxy) -> None:
    """`status` is what the server says; nginx makes what the table says of the same bytes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stage.path("up.sock"))
        listener.listen()
        threading.Thread(target=serve, args=(listener, list(HEADS.values())), daemon=True).start()
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        front = Front(free_port(), "", "")
        run_nginx(stage, _SERVER.format(port=front.port, directory=stage.directory, upstream=proxy.socket), [front])
        answered = {}
        for name in HEADS:
            with front.begin("/", close=True) as client:
                answered[name] = int(receive_all(client).split()[1])
        requests = proxy.wait_for("request", count=len(HEADS))
    assert answered == {name: head.nginx for name, head in HEADS.items()}
    assert [each.get("status") for each in requests] == [head.says for head in HEADS.values()]
