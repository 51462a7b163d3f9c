"""A call ends within its time, whatever the service does meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from resources.deadline import DeadlineTransport, within

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BODY = b'{"choices": [{"message": {"content": "hi there"}}]}'
ANSWERS = {
    # How much of the answer comes at once; the rest trickles.
    "the body": HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY),
    "the headers": b"HTTP/1.1 200 OK\r\n",
    "the status line": b"",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    "nothing": b"",
}


@pytest.fixture(params=ANSWERS)
def slow_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A service that sends a byte each 0.1 s, or none."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(ANSWERS[request.param])
            drip = b"1\r\nx\r\n" if request.param == "chunks" else b"X"
            while not ended.wait(0.1):
                if request.param != "nothing":
                    try:
                        connection.sendall(drip)
                    except OSError:
                        return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        ended.set()
        thread.join(5)


def test_a_service_that_trickles_is_left_within_the_time_of_the_call(slow_url: str):
    with httpx.Client(transport=DeadlineTransport(), timeout=60) as client:
        started = time.monotonic()
        with pytest.raises(httpx.ReadTimeout), within(0.5):
            client.get(slow_url)
        assert 0.4 < time.monotonic() - started < 2


def test_without_a_deadline_the_timeouts_of_httpx_hold(slow_url: str):
    client = httpx.Client(transport=DeadlineTransport(), timeout=0.05)
    with client, pytest.raises(httpx.ReadTimeout):
        client.get(slow_url)
