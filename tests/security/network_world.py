"""Another host, for tests of the way out: a network namespace with a web server and a name server; run by root.

`python network_world.py ADDRESS...` serves HTTP on port 80 of each address (the answer names the address), and DNS on
the first: NAME.ADDRESS-WITH-DASHES.test has that address; `rebind-N.test` has the second address for its first
lookup and 127.0.0.1 afterwards. `/to/URL` redirects there, `/slow` sends a byte now and then.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

seen: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = f"here is {self.server.server_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return None


def answer(query: bytes, second: str) -> bytes:
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
        at += 1 + query[at]
    kind = struct.unpack_from("!H", query, at + 1)[0]
    question = query[12 : at + 5]
    addresses = []
    if kind == 1 and labels[-1] == "test":
        seen[labels[0]] += 1
        if labels[0].startswith("rebind"):
            addresses = [second if seen[labels[0]] == 1 else "127.0.0.1"]
        elif len(labels) > 2:
            addresses = [labels[-2].replace("-", ".")]
    records = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(one) for one in addresses)
    return query[:2] + struct.pack("!HHHHH", 0x8580, 1, len(addresses), 0, 0) + question + records


def main() -> None:
    addresses = sys.argv[1:]
    for address in addresses:
        server = ThreadingHTTPServer((address, 80), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((addresses[0], 53))
    print("ready", flush=True)
    while True:
        data, client = names.recvfrom(4096)
        names.sendto(answer(data, addresses[1]), client)


if __name__ == "__main__":
    main()
