from __future__ import annotations

from typing import Any

from django.core.asgi import get_asgi_application

from souvenirs.asgi import flush_at_shutdown

django = get_asgi_application()


async def with_events(scope: Any, receive: Any, send: Any) -> None:
    """An application that handles its server's startup and shutdown events."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    for event in "startup", "shutdown":
        assert (await receive())["type"] == f"lifespan.{event}"
        print(event, flush=True)
        await send({"type": f"lifespan.{event}.complete"})


application = flush_at_shutdown(django)
application_with_events = flush_at_shutdown(with_events)
