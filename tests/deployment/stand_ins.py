"""`python -m demo` whose children are stand-ins: `python -m tests.deployment.stand_ins up ...`.

For tests of the processes alone: the children start at once, answer what is asked of them, and
have a child of their own.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

LOCATION = {
    "name": "nothing",
    "loadStatus": "LOADED",
    "locationOrLoadError": {"__typename": "RepositoryLocation"},
}
DATA = {
    "workspaceOrError": {"__typename": "Workspace", "locationEntries": [LOCATION]},
    "instance": {"daemonHealth": {"allDaemonStatuses": []}},
    "runsOrError": {"count": 0},
}


class Answers(BaseHTTPRequestHandler):
    """Says that every code location is loaded, and that no run is at work."""

    def do_GET(self) -> None:
        body = json.dumps({"data": DATA}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET


def serve(port: int) -> None:
    # Ends with this process, as a code server does.
    subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    ThreadingHTTPServer(("127.0.0.1", port), Answers).serve_forever()


def up() -> None:
    from demo.__main__ import main
    from demo.up import deployment
    from demo.up.children import Children

    start = Children.start

    def start_stand_in(self: Children, name: str, command: Sequence[str], **options: Any) -> Any:
        port = command[command.index("--port") + 1] if "--port" in command else "0"
        stand_in = [sys.executable, __file__, "serve", port, name]
        return start(self, name, stand_in, **options)

    with (
        mock.patch.object(Children, "start", start_stand_in),
        mock.patch.object(deployment, "make_dagster_storage"),
    ):
        main(sys.argv[1:], prog_name="python -m demo")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        up()
