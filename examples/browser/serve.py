"""Serves this folder at http://localhost:8000, with the headers that let WebAssembly use threads.

python examples/browser/serve.py [PORT]
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Isolated(SimpleHTTPRequestHandler):
    """Isolates pages from other origins: browsers share memory between threads of such pages only."""

    def end_headers(self) -> None:
        """Ends the headers of every answer."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Returns a server of the folder to this machine alone. port: 0 for any."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Isolated, directory=str(folder)))


if __name__ == "__main__":
    with server(Path(__file__).parent, int(sys.argv[1]) if len(sys.argv) > 1 else 8000) as http:
        print(f"http://localhost:{http.server_port} (Ctrl-C ends)")
        http.serve_forever()
