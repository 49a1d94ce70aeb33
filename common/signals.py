"""Ctrl-C and SIGTERM: a polite stop for loops, processes that do not see it."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import TracebackType

SAME_SIGNAL_S = 0.3  # job schedulers deliver one signal twice, to the group and to the process


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that this thread spawns meanwhile do not see Ctrl-C, and do not import a script started by its path.

    A terminal sends Ctrl-C to all of us, but it is for the parent to handle. Workers inherit what is blocked; a handler
    of their own would come too late for a Ctrl-C while they import. Workers of an evaluation need none of the script.
    """
    resource_tracker.ensure_running()  # it would lift the block when it is first needed
    script = vars(sys.modules["__main__"])
    hidden = {name: script.pop(name) for name in ("__file__",) if name in script}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        script.update(hidden)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def interrupt_event() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, for a loop that asks for it. A KeyboardInterrupt would be lost now and then:

    Python drops an exception in a callback of its garbage collector, and JAX has one. Outside the main thread, which
    signals belong to, nothing sets it.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    handler = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, handler)


class StopSignals:
    """The first Ctrl-C or SIGTERM asks the loop to stop after its chunk; the second ends the process at once.

    Python runs signal handlers between bytecodes, hence not while XLA computes. The wake-up file descriptor is written
    to immediately, and a thread reads it. Outside the main thread, which signals belong to, nothing asks.
    """

    def __enter__(self) -> "StopSignals":
        self._requested = threading.Event()
        self._old_handlers = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
        }
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._old_handlers:
            return
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._writer.close()

    def requested(self) -> bool:
        """Whether the loop should save and end."""
        return self._requested.is_set()

    def _watch(self) -> None:
        first: tuple[int, float] | None = None
        while received := self._reader.recv(1):
            number, now = received[0], time.monotonic()
            if number not in self._old_handlers:
                continue
            if first is None:
                first = number, now
                self._requested.set()
                os.write(2, b"\nstopping after this chunk and saving; once more stops at once\n")
            elif number != first[0] or now - first[1] > SAME_SIGNAL_S:
                os.write(2, b"\nstopped at once; what the last checkpoint holds can be resumed\n")
                os._exit(128 + number)
