"""The relay: bytes out are bytes in, ends come after them, and nobody can make it hold much."""

from __future__ import annotations

import array
import errno
import os
import socket

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.proxy.conftest import Ends, IdleTap, fill, read_all, read_exactly, send_all
from udsproxy.proxy.relay import BUFFER, Relay

# The kernel's own buffers on the way: ours and theirs, each with room for half as much again (sk_buff overhead).
KERNEL = 2 * 2 * 212_992


def sides(ends: Ends, direction: str) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """(who sends, who receives) in this direction."""
    return (ends.client, ends.upstream) if direction == "c2s" else (ends.upstream, ends.client)


both_ways = pytest.mark.parametrize("direction", ["c2s", "s2c"])


@both_ways
async def test_bytes_go_through_and_are_observed(ends: Ends, direction: str) -> None:
    """What one side sends the other receives, and the watcher gets a copy of."""
    sender, receiver = sides(ends, direction)
    await sender.send(b"hello")
    assert await receiver.recv(100) == b"hello"
    await receiver.send(b"back")
    assert await sender.recv(100) == b"back"
    there, back = ("c2s", "s2c") if direction == "c2s" else ("s2c", "c2s")
    assert ends.observed == {there: b"hello", back: b"back"}


@both_ways
async def test_much_goes_through_whole(ends: Ends, direction: str) -> None:
    """Many times what the buffers hold arrives unchanged."""
    sender, receiver = sides(ends, direction)
    data = os.urandom(8 * BUFFER + 12345)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, sender, data)
        assert await read_exactly(receiver, len(data)) == data
    flow = ends.pair.c2s if direction == "c2s" else ends.pair.s2c
    assert flow.nbytes == len(data)


@both_ways
async def test_a_reader_that_does_not_read_stops_the_writer(ends: Ends, direction: str) -> None:
    """At most one buffer is held; the writer is stopped; when the reader reads on, nothing is missing."""
    sender, receiver = sides(ends, direction)
    sent = await fill(sender, b"0123456789abcdef" * 256)
    flow = ends.pair.c2s if direction == "c2s" else ends.pair.s2c
    assert 0 < sum(len(data) for data, _ in flow.outbox) <= BUFFER
    assert sent <= BUFFER + KERNEL
    assert await read_exactly(receiver, sent) == (b"0123456789abcdef" * (sent // 16 + 1))[:sent]
    await sender.send(b"again")
    assert await receiver.recv(100) == b"again"


async def test_a_stalled_connection_disturbs_no_other(relay: Relay) -> None:
    """While one connection is stuck in both directions another goes on."""
    stuck, other = Ends(relay), Ends(relay)
    await fill(stuck.client)
    await fill(stuck.upstream)
    for _ in range(3):
        await other.client.send(b"x")
        assert await other.upstream.recv(10) == b"x"
    stuck.close()
    other.close()


@both_ways
async def test_half_close_goes_through_after_the_data(ends: Ends, direction: str) -> None:
    """shutdown(SHUT_WR) arrives as the end of what was sent before; the other direction stays open."""
    sender, receiver = sides(ends, direction)
    data = os.urandom(3 * BUFFER)

    async def send() -> None:
        await send_all(sender, data)
        sender.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await read_all(receiver) == data
    await receiver.send(b"late answer")
    assert await sender.recv(100) == b"late answer"
    receiver.shutdown(socket.SHUT_WR)
    assert await sender.recv(100) == b""
    await ends.over.wait()
    assert (ends.pair.by, ends.pair.errno) == ("client" if direction == "c2s" else "upstream", None)


@both_ways
async def test_what_was_sent_before_a_close_is_delivered(ends: Ends, direction: str) -> None:
    """A side that sends and closes, while the other reads slowly, loses nothing."""
    sender, receiver = sides(ends, direction)
    sent = await fill(sender)
    sender.close()
    assert await read_all(receiver) == bytes(sent)
    await ends.over.wait()
    assert ends.pair.by == ("client" if direction == "c2s" else "upstream")


@both_ways
async def test_after_a_close_the_other_cannot_send(ends: Ends, direction: str) -> None:
    """When one side has closed altogether the other gets EPIPE, as it would directly; also while it has yet to
    read what was sent to it."""
    sender, receiver = sides(ends, direction)
    sent = await fill(sender)
    sender.close()
    await read_exactly(receiver, 4096)
    with pytest.raises(BrokenPipeError):
        await fill(receiver)
    assert len(await read_all(receiver)) == sent - 4096


@both_ways
async def test_who_stops_reading_is_not_written_to(ends: Ends, direction: str) -> None:
    """shutdown(SHUT_RD) of one side makes the other's sends fail with EPIPE; the other way stays open."""
    sender, receiver = sides(ends, direction)
    receiver.shutdown(socket.SHUT_RD)
    with pytest.raises(BrokenPipeError):
        await fill(sender, b"x")
    await receiver.send(b"still here")
    assert await sender.recv(100) == b"still here"


@both_ways
async def test_a_reset_ends_the_other_side(ends: Ends, direction: str) -> None:
    """A close with unread data is a reset (net/unix/af_unix.c, unix_release_sock): the other side ends at once."""
    closer, other = sides(ends, direction)
    await other.send(b"never read")
    await trio.testing.wait_all_tasks_blocked(0.01)
    closer.close()
    assert await read_all(other) == b""
    await ends.over.wait()
    assert (ends.pair.by, ends.pair.errno) == ("client" if direction == "c2s" else "upstream", "ECONNRESET")


@both_ways
async def test_what_was_sent_before_a_reset_is_delivered(ends: Ends, direction: str) -> None:
    """Bytes that were on their way when a side was reset arrive first."""
    closer, other = sides(ends, direction)
    await other.send(b"never read")
    await closer.send(b"last words")
    await trio.testing.wait_all_tasks_blocked(0.01)
    closer.close()
    assert await read_all(other) == b"last words"


async def test_both_close(ends: Ends) -> None:
    """Two sides that close at once end the connection, without an error."""
    ends.client.close()
    ends.upstream.close()
    await ends.over.wait()
    assert (ends.pair.by, ends.pair.errno) == ("client", None)


async def test_ended_by_the_proxy(ends: Ends) -> None:
    """What we end ourselves is closed to both sides and told as ours."""
    await fill(ends.client)
    ends.relay.end(ends.pair)
    await ends.over.wait()
    assert ends.pair.by == "proxy"
    assert await read_all(ends.client) == b""
    ends.relay.end(ends.pair)


async def test_nothing_is_left_behind(relay: Relay) -> None:
    """Connections that ended leave no descriptors, and their numbers can be used again at once."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        ends = Ends(relay)
        await ends.client.send(b"x")
        assert await ends.upstream.recv(10) == b"x"
        ends.client.close()
        assert await ends.upstream.recv(10) == b""
        ends.upstream.close()
        await ends.over.wait()
    assert len(os.listdir("/proc/self/fd")) == before


# --- descriptors ---


def rights(*files: int) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files).tobytes())]


async def receive_descriptors(sock: trio.socket.SocketType) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = await sock.recvmsg(1000, socket.CMSG_SPACE(253 * 4))
    found = array.array("i")
    for _, _, some in ancillary:
        found.frombytes(some)
    return data, list(found)


@both_ways
@pytest.mark.parametrize("count", [1, 253])
async def test_descriptors_are_passed_on(ends: Ends, direction: str, count: int) -> None:
    """SCM_RIGHTS arrives with its bytes, as many as a message can carry, and we keep none."""
    sender, receiver = sides(ends, direction)
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    await sender.sendmsg([b"take"], rights(*[write] * count))
    data, found = await receive_descriptors(receiver)
    assert data == b"take"
    assert len(found) == count
    assert len(os.listdir("/proc/self/fd")) == before + count
    os.write(found[-1], b"it works")
    assert os.read(read, 100) == b"it works"
    for fd in (*found, read, write):
        os.close(fd)


async def test_descriptors_of_a_blocked_message_are_passed_on(ends: Ends) -> None:
    """A message that has to wait keeps its descriptors, and loses none of them when it goes."""
    sent = await fill(ends.client)
    read, write = os.pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.client.sendmsg, [b"late"], rights(write))
        assert await read_exactly(ends.upstream, sent) == bytes(sent)
        data, [found] = await receive_descriptors(ends.upstream)
    assert data == b"late"
    assert os.fstat(found) == os.fstat(write)
    for fd in (found, read, write):
        os.close(fd)


async def test_descriptors_that_nobody_takes_are_closed(ends: Ends) -> None:
    """Descriptors that were held when the receiver went away are not leaked."""
    before = len(os.listdir("/proc/self/fd"))
    sent = 0
    read, write = os.pipe()
    with trio.move_on_after(1) as scope:
        while not scope.cancelled_caught:
            sent += await ends.client.sendmsg([bytes(4096)], rights(write))
    os.close(read)
    os.close(write)
    ends.upstream.close()
    await read_all(ends.client)
    ends.client.close()
    await ends.over.wait()
    assert len(os.listdir("/proc/self/fd")) <= before - 4
    assert sent > 0


async def test_descriptors_cannot_cross_to_tcp(relay: Relay) -> None:
    """Where the other side is TCP the bytes go on, the descriptors are closed, and that is told."""
    ends = Ends(relay, socket.AF_INET)
    read, write = os.pipe()
    await ends.client.sendmsg([b"bytes"], rights(write))
    assert await ends.upstream.recv(100) == b"bytes"
    assert ends.lost_descriptors == ["1 cannot travel over TCP"]
    os.close(write)
    assert os.read(read, 1) == b""  # the other end is closed everywhere
    os.close(read)
    ends.close()


# --- TCP ---


async def test_tcp_goes_through(relay: Relay) -> None:
    """To a TCP upstream: bytes, half-close, the late answer."""
    ends = Ends(relay, socket.AF_INET)
    await ends.client.send(b"question")
    ends.client.shutdown(socket.SHUT_WR)
    assert await read_all(ends.upstream) == b"question"
    await ends.upstream.send(b"answer")
    ends.upstream.close()
    assert await read_all(ends.client) == b"answer"
    await ends.over.wait()
    ends.close()


async def test_a_tcp_reset_ends_the_client(relay: Relay) -> None:
    """A reset by a TCP upstream ends the client's connection."""
    ends = Ends(relay, socket.AF_INET)
    ends.upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ends.upstream.close()
    assert await read_all(ends.client) == b""
    ends.client.close()
    await ends.over.wait()
    assert (ends.pair.by, ends.pair.errno) == ("upstream", "ECONNRESET")


# --- any order of events ---


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "recv", "send_much", "shut", "settle"]),
            st.sampled_from(["c2s", "s2c"]),
            st.integers(1, 400_000),
        ),
        max_size=30,
    )
)
def test_bytes_out_are_bytes_in(steps: list[tuple[str, str, int]]) -> None:
    """Whatever the order of sending, reading and half-closing: what was sent arrives, in order, and then EOF."""
    trio.run(play, steps, clock=trio.testing.MockClock(autojump_threshold=0))


async def play(steps: list[tuple[str, str, int]]) -> None:
    relay = Relay(IdleTap())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        ends = Ends(relay)
        sent, got, shut = {"c2s": b"", "s2c": b""}, {"c2s": b"", "s2c": b""}, set()
        for step, direction, size in steps:
            sender, receiver = sides(ends, direction)
            if step == "shut":
                shut.add(direction)
                sender.shutdown(socket.SHUT_WR)
            elif step.startswith("send") and direction not in shut:
                piece = os.urandom(size if step == "send_much" else size % 1000 + 1)
                with trio.move_on_after(0.1):
                    count = await sender.send(piece)
                    sent[direction] += piece[:count]
            elif step == "recv":
                with trio.move_on_after(0.1):
                    got[direction] += await receiver.recv(size)
            else:
                await trio.sleep(0.1)
        for direction in ("c2s", "s2c"):
            sender, receiver = sides(ends, direction)
            sender.shutdown(socket.SHUT_WR)
            got[direction] += await read_all(receiver)
        ends.close()
        await ends.over.wait()
        assert got == sent
        assert ends.observed == sent
        assert (ends.pair.c2s.nbytes, ends.pair.s2c.nbytes) == (len(sent["c2s"]), len(sent["s2c"]))
        nursery.cancel_scope.cancel()
    relay.close()


# --- turns ---


async def test_flows_that_had_their_share_are_not_forgotten(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that ends while flows have more to read is followed by another: epoll tells of nothing twice."""
    monkeypatch.setattr("udsproxy.proxy.relay._TURN_NS", 1)
    many = [Ends(relay, socket.AF_INET) for _ in range(4)]
    data = os.urandom(6 * BUFFER)

    async def send(ends: Ends) -> None:
        await send_all(ends.upstream, data)
        ends.upstream.shutdown(socket.SHUT_WR)

    async with trio.open_nursery() as nursery:
        for ends in many:
            nursery.start_soon(send, ends)
        for ends in many:
            assert await read_all(ends.client) == data
    for ends in many:
        ends.close()


# --- the observer's turn ---


async def test_the_observer_works_when_there_is_time(relay: Relay, tap: IdleTap) -> None:
    """Work that waits is done though no traffic comes, once the relay is told; and traffic goes on meanwhile."""
    ends = Ends(relay)
    await trio.testing.wait_all_tasks_blocked(0.01)
    tap.units = 100_000
    relay.wake()
    await ends.client.send(b"x")
    assert await ends.upstream.recv(10) == b"x"
    while tap.units:
        await trio.sleep(0.01)
    assert tap.done == 100_000
    ends.close()


async def test_errors_of_reading_are_named(ends: Ends) -> None:
    """How a connection ended is told with the errno's name."""
    await ends.client.send(b"never read")
    await trio.testing.wait_all_tasks_blocked(0.01)
    ends.upstream.close()
    await ends.over.wait()
    assert ends.pair.errno == errno.errorcode[errno.ECONNRESET]


async def test_who_left_first_is_who_left(relay: Relay) -> None:
    """A client leaves while its answer is on the way, and the upstream closes for that reason, before the relay is
    told of either: the client has left."""
    other, ends = Ends(relay), Ends(relay)

    def client_leaves(direction: str, at: int, data: bytes) -> None:
        os.write(ends.upstream.fileno(), b"more")
        ends.client.close()

    def upstream_closes(direction: str, at: int, data: bytes) -> None:
        ends.upstream.close()

    other.pair.watch, ends.pair.watch = client_leaves, upstream_closes
    await trio.testing.wait_all_tasks_blocked(0.01)
    # Both come in one batch of events, and while the first is forwarded the client of the second leaves.
    os.write(other.upstream.fileno(), b"x")
    os.write(ends.upstream.fileno(), b"answer")
    await ends.over.wait()
    assert ends.pair.by == "client"
    other.close()


async def test_credentials_that_nobody_asked_for(ends: Ends) -> None:
    """Where a socket has SO_PASSCRED and the relay does not know, every byte goes on all the same, once."""
    ends.pair.s2c.src.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sent = b""
    for number in range(5):
        sent += b"%d: hello" % number
        await ends.upstream.send(b"%d: hello" % number)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert await ends.client.recv(1000) == sent


async def test_what_a_child_still_holds(relay: Relay) -> None:
    """While a child has a copy of a connection's descriptor, what happens to that connection after its end is not
    taken for what happens to another, which has its number."""
    first = Ends(relay)
    numbers = {first.pair.c2s.src.fileno(), first.pair.s2c.src.fileno()}
    held = [os.dup(number) for number in numbers]
    relay.expect_child()
    relay.end(first.pair)
    await first.over.wait()
    others = [Ends(relay) for _ in range(4)]
    assert numbers & {flow.src.fileno() for ends in others for flow in (ends.pair.c2s, ends.pair.s2c)}
    first.close()
    await trio.testing.wait_all_tasks_blocked(0.01)
    for ends in others:
        await ends.client.send(b"x")
        assert await ends.upstream.recv(10) == b"x"
        await ends.upstream.send(b"y")
        assert await ends.client.recv(10) == b"y"
        ends.close()
    for number in held:
        os.close(number)
