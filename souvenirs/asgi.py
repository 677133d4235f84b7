"""For asgi.py: write the last visits before the server ends the process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from asgiref.sync import sync_to_async

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def flush_at_shutdown(application: Application) -> Application:
    """Wrap an ASGI application so that queued visits are written at its shutdown:

        application = flush_at_shutdown(get_asgi_application())

    Servers such as uvicorn end a process with a signal, so Python's exit handlers do not run. But
    first they send the application the ASGI event `lifespan.shutdown`. Takes at most 3 seconds.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        has_begun = False

        async def note_and_receive() -> Message:
            nonlocal has_begun
            has_begun = True
            return await receive()

        async def flush_and_send(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await flush()
            await send(message)

        try:
            await application(scope, note_and_receive, flush_and_send)
        except Exception:
            if has_begun:
                raise
            await _answer(receive, send)  # Django raises, because it does not handle these events

    return wrapped


async def _answer(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await flush()
    await send({"type": "lifespan.shutdown.complete"})


async def flush() -> None:
    # Imported here, since asgi.py may import this module before Django has loaded its apps
    from souvenirs.recording.writer import writer

    await sync_to_async(writer.stop, thread_sensitive=False)()
