"""A TCP proxy before a server, which counts what comes back and can stop letting anything through."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SlowProxy:
    """Lets `limit` bytes of answers through, then nothing; `stuck` is set when that happens."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.limit: int | None = None
        self.answered = 0
        self.stuck = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self, limit: int | None = None) -> None:
        """Counts from nothing again."""
        with self._lock:
            self.answered, self.limit = 0, limit

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._asks, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _asks(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError), server, client:
            while data := server.recv(65536):
                with self._lock:
                    self.answered += len(data)
                    stuck = self.limit is not None and self.answered > self.limit
                if stuck:
                    self.stuck.set()
                    while client.recv(65536):  # until the client is gone
                        pass
                    return
                client.sendall(data)


@contextmanager
def slow_proxy(port: int) -> Iterator[SlowProxy]:
    """A running proxy before a port of this computer."""
    proxy = SlowProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
