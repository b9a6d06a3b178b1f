"""The scoring server as a process: it listens, passes its listener on, and ends without losing a request.

SIGTERM and SIGINT end it: it accepts nothing more, asks clients that keep a connection open to connect anew, finishes
what is in flight, writes the prediction log and exits. It does not restart itself and has no worker processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.ml.serving.handover import ControlServer
from airflow_provider_sml.ml.serving.log import PredictionLog

KEEP_ALIVE_SECONDS = 5
#: With the keep-alive time it stays below the ten seconds after which a server is killed.
FINISH_SECONDS = 4
BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket that listens for nothing yet; port 0 takes a free one.

    :raises OSError: when the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def serve_public(app: FastAPI, log: PredictionLog | None, host: str, port: int) -> None:
    """Serve on a port until a signal ends it.

    :param app: the application.
    :param log: closed at the end.
    :raises ConfigurationError: when the port is taken.
    """
    try:
        listener = bind(host, port)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}", found=error.strerror, todo="end what listens there, or give another port"
        ) from error
    asyncio.run(_Process(app, log).run_public(listener))


def serve_candidate(
    app: FastAPI, log: PredictionLog | None, control: Path, port_file: Path, promote_within: float
) -> None:
    """Serve on a private loopback port, and on the public one when a listener is passed.

    :param app: the application.
    :param log: on only from when it is public; closed at the end.
    :param control: path of the control socket.
    :param port_file: gets the number of the private port once it answers.
    :param promote_within: seconds after which it ends if nobody made it public, so that no candidate is left over.
    """
    if log is not None:
        log.enabled = False
    asyncio.run(_Process(app, log).run_candidate(control, port_file, promote_within))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process handles them, for all of its servers


class _Process:
    def __init__(self, app: FastAPI, log: PredictionLog | None) -> None:
        self.app, self.log = app, log
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._public: tuple[_Server, socket.socket] | None = None
        self._stop = asyncio.Event()

    async def run_public(self, listener: socket.socket) -> None:
        self._handle_signals()
        await self._take(listener)
        await self._until_stopped()

    async def run_candidate(self, control: Path, port_file: Path, promote_within: float) -> None:
        self._handle_signals()
        loop = asyncio.get_running_loop()

        def take(listener: socket.socket) -> None:
            asyncio.run_coroutine_threadsafe(self._take(listener), loop).result(10)

        def cease() -> None:
            asyncio.run_coroutine_threadsafe(self._cease(), loop).result(10)

        private = bind("127.0.0.1", 0)
        port = private.getsockname()[1]
        await self._listen(private)
        server = ControlServer(control, lambda: self._public[1] if self._public else None, take, cease)
        write_atomically(port_file, f"{port}\n")
        given_up = loop.call_later(promote_within, lambda: self._stop.set() if self._public is None else None)
        try:
            await self._until_stopped()
        finally:
            given_up.cancel()
            server.close()

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)

    async def _listen(self, listener: socket.socket) -> _Server:
        config = uvicorn.Config(
            self.app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FINISH_SECONDS,
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
            if task.done():
                task.result()
                raise RuntimeError("the HTTP server ended while it was starting")
        self._servers.append(server)
        self._tasks.append(task)
        return server

    async def _take(self, listener: socket.socket) -> None:
        if self._public is not None:
            listener.close()
            return
        if self._stop.is_set():
            listener.close()
            raise RuntimeError("the server is ending")
        self._public = (await self._listen(listener), listener)
        if self.log is not None:
            self.log.enabled = True

    async def _cease(self) -> None:
        if self._public is not None:
            server, self._public = self._public[0], None
            await _close_listeners(server)

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        self.app.state.draining = True
        self._public = None
        for server in self._servers:
            await _close_listeners(server)
        # Each open connection now ends with its next answer, or by its keep-alive time; to close it at once would
        # lose the request that may be on its way.
        end = time.monotonic() + KEEP_ALIVE_SECONDS
        await asyncio.sleep(0.1)
        while any(server.server_state.connections for server in self._servers) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.log is not None:
            self.log.close()


async def _close_listeners(server: uvicorn.Server) -> None:
    """Accept nothing more; what was accepted is answered.

    A listener of asyncio that is closed between accepting a connection and the next turn of the loop drops it, and its
    client sees a reset (https://github.com/python/cpython/issues/109564). So it first stops to look for connections,
    and closes two turns later.
    """
    loop = asyncio.get_running_loop()
    for listener in server.servers:
        for one in listener.sockets:
            loop.remove_reader(one.fileno())
    for _ in range(2):
        await asyncio.sleep(0)
    for listener in server.servers:
        listener.close()


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole; readers see the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
