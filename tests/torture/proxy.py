"""A network that fails: a TCP proxy on loopback that delays, cuts, refuses and swallows."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

_BLOCK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing drops what is on its way, and resets the connection
_DELAY_S = 0.5
_CUT_BYTES = 20_000


class Proxy:
    """Passes connections on to a port, as long as no fault is set.

    Attributes:
        port: where it listens.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._fault = ""
        self._amount = 0.0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        # Holds the port while nothing listens there.
        self._place = self._bind(0)
        self.port: int = self._place.getsockname()[1]
        self._listener = self._listen()

    def fail(self, fault: str, amount: float) -> None:
        """Let connections fail in one way, also those that are open, until `heal`."""
        self.heal()
        self._fault, self._amount = fault, amount
        if fault == "refuse":
            # Only this wakes the thread that waits for connections.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._reset()

    def heal(self) -> None:
        """Pass everything on again; connections that were swallowed are reset."""
        fault, self._fault = self._fault, ""
        if fault == "refuse":
            self._listener = self._listen()
        if fault == "black-hole":
            self._reset()

    def close(self) -> None:
        """Stop listening, and let go of everything."""
        self.fail("refuse", 0)
        self._place.close()

    def _bind(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    def _listen(self) -> socket.socket:
        listener = self._bind(self.port)
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            server.settimeout(None)
        except OSError:
            _reset(client)
            client.close()
            return
        both = (client, server)
        with self._lock:
            self._open.update(both)
        answers = threading.Thread(target=self._pump, args=(server, client, "cut-answer", both), daemon=True)
        answers.start()
        self._pump(client, server, "cut-request", both)
        answers.join()
        with self._lock:
            self._open.difference_update(both)
        for each in both:
            each.close()

    def _pump(self, source: socket.socket, sink: socket.socket, cut: str, both: tuple[socket.socket, ...]) -> None:
        """Pass bytes on one way, until one side ends or the fault that cuts this way comes."""
        try:
            while data := source.recv(_BLOCK):
                fault, amount = self._fault, self._amount
                if fault == "delay":
                    time.sleep(_DELAY_S * amount)
                if fault == "black-hole":
                    continue
                if fault == cut:
                    sink.sendall(data[: int(min(len(data), _CUT_BYTES) * amount)])
                    for each in both:
                        _reset(each)
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for each in both:
                _reset(each)

    def _reset(self) -> None:
        with self._lock:
            for each in self._open:
                _reset(each)


def _reset(connection: socket.socket) -> None:
    """Reset a connection, and wake the thread that reads from it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)
