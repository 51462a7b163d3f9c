"""An HTTP server on loopback that counts calls, and may have a limit that it names in its headers.

It runs in a process of its own, and speaks as much of HTTP as `http.client` needs.
"""

import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse

from dagster_tidegate.breaker.answers import Answer

processes = multiprocessing.get_context("fork")


class _Counter:
    """Answers each call.

    Args:
        calls: How many it permits in each window; 0: no limit.
    """

    def __init__(self, calls: int, window_s: float) -> None:
        self.calls, self.window_s = calls, window_s
        self.made: list[float] = []
        self.refused = 0
        self.window, self.used = 0.0, 0

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        now = time.time()
        if path == "/made":
            return 200, {}, json.dumps({"made": self.made, "refused": self.refused}).encode()
        if not self.calls:
            self.made.append(now)
            return 200, {}, b"{}"
        window = now // self.window_s
        if window != self.window:
            self.window, self.used = window, 0
        left_s = (window + 1) * self.window_s - now
        headers = {"RateLimit-Policy": f'"hidden";q={self.calls};w={self.window_s:g}'}
        if self.used >= self.calls:
            self.refused += 1
            headers |= {"RateLimit": f'"hidden";r=0;t={left_s:.2f}', "Retry-After": f"{left_s:.2f}"}
            return 429, headers, b"{}"
        self.used += 1
        self.made.append(now)
        headers["RateLimit"] = f'"hidden";r={self.calls - self.used};t={left_s:.2f}'
        return 200, headers, b"{}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                status, headers, body = self.answer(head.split(b" ", 2)[1].decode())
                lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def _run(listening: socket.socket, calls: int, window_s: float) -> None:
    async def run() -> None:
        counter = _Counter(calls, window_s)
        server = await asyncio.start_server(counter.serve, sock=listening)
        await server.serve_forever()

    asyncio.run(run())


class Client:
    """Calls the server over one connection."""

    def __init__(self, port: int) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=30)

    def _get(self, path: str) -> tuple[HTTPResponse, bytes]:
        self._http.request("GET", path)
        response = self._http.getresponse()
        return response, response.read()

    def call(self) -> Answer:
        """Make a call, and return its answer."""
        response, body = self._get("/call")
        return Answer(response.status, dict(response.headers), body)

    def made(self) -> tuple[list[float], int]:
        """Return when calls arrived that were permitted, and how many were refused."""
        counts = json.loads(self._get("/made")[1])
        return counts["made"], counts["refused"]


@contextmanager
def counting_server(calls: int = 0, window_s: float = 1.0) -> Iterator[int]:
    """Run the server, and give its port until the end of the block."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        process = processes.Process(target=_run, args=(listening, calls, window_s), daemon=True)
        process.start()
        try:
            yield listening.getsockname()[1]
        finally:
            process.terminate()
            process.join(10)
