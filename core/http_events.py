"""Events over HTTP: ``python -m perdure.http_events --storage URL`` receives, `HTTPListener` waits.

Owns the HTTP face of `mailbox`: requests, answers, and one look at the store every other second for all listeners of
a loop (sooner where one has just begun to wait, or an event came). The receiver needs the store only, no cluster; any
number of them may run. Needs the extra ``http``.

    POST /event/send_event/WORKFLOW_ID   {"event_key": "approved", "event_payload": {"by": "me"}}

200: stored durably. 404: no such workflow, or it has ended. 409: another event of this key is not taken yet. 400, 413:
a wrong request. 401: the receiver has PERDURE_EVENTS_TOKEN set, and the request has another bearer token. 503: the
store is away, the event may or may not be stored; send it again.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from perdure import keys
from perdure.errors import DecodeError, StoreError, WorkflowExistsError, WorkflowNotFoundError
from perdure.event_listener import LIFE, STORE, EventListener
from perdure.events.mailbox import LIMIT, Mailbox, check_name
from perdure.onray.process import PROCESS
from perdure.onray.worker import CURRENT

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

logger = logging.getLogger("perdure")

LOOK_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 2.0
"""From the third look without news on."""
SOON_SECONDS: Final = 0.05
"""Between two looks where a listener has begun to wait since the last: its event may be there already."""
LONGEST_REFUSED: Final = 64 * LIMIT
"""So much of a request that is too long is read all the same: who is cut off while sending never sees the answer."""
TOKEN_VARIABLE: Final = "PERDURE_EVENTS_TOKEN"


class HTTPListener(EventListener):
    """``workflow.wait_for_event(HTTPListener, event_key)``: its event is ``(event_key, event_payload)``.

    The event must be sent to this workflow; other workflows that wait for the same key don't see it. A key may be used
    again once its event was acknowledged.
    """

    async def poll_for_event(self, event_key: str) -> tuple[str, Any]:
        """Wait for an event of this key."""
        board = _board(STORE.get())
        key = _key(check_name(event_key))
        await board.seen(key)
        data = await _on_store(board.mailbox.get(key))
        try:
            return event_key, json.loads(data)
        except ValueError as error:
            raise DecodeError(f"event {key} in the store is no JSON") from error

    async def event_checkpointed(self, event: tuple[str, Any]) -> None:
        await _on_store(_board(STORE.get()).mailbox.acknowledge(_key(event[0]), _encode(event[1])))


def _encode(payload: Any) -> bytes:
    return json.dumps(payload, sort_keys=True).encode()


def _key(event_key: str) -> str:
    context = CURRENT.get()
    if context is None:
        raise RuntimeError("HTTPListener runs inside a workflow only: give it to workflow.wait_for_event")
    return keys.event(context.workflow_id, LIFE.get(), event_key)


async def _on_store(coroutine: Any) -> Any:
    return await asyncio.wrap_future(PROCESS.begin(coroutine))


class _Board:
    """What lies in one store, looked at while somebody waits, however many they are."""

    def __init__(self, url: str) -> None:
        self.mailbox = Mailbox(PROCESS.store(url))
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._new = asyncio.Event()

    async def seen(self, key: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        self._new.set()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
        try:
            await future
        finally:
            left = [other for other in self._waiting.get(key, ()) if other is not future]
            if left:
                self._waiting[key] = left
            else:
                self._waiting.pop(key, None)

    async def _look(self) -> None:
        quiet = 0
        while self._waiting:
            quiet = 0 if self._new.is_set() else quiet + 1
            self._new.clear()
            try:
                names = await _on_store(self.mailbox.waiting())
            except StoreError as error:
                logger.warning("events in the store can't be seen: %s", error)
                names = []
            for name in names:
                for future in self._waiting.get(name, ()):
                    if not future.done():
                        future.set_result(None)
                        quiet = 0
            await asyncio.sleep(SOON_SECONDS)
            try:
                async with asyncio.timeout((LOOK_SECONDS if quiet < 2 else IDLE_SECONDS) - SOON_SECONDS):
                    await self._new.wait()
            except TimeoutError:
                pass


_boards: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Board]] = WeakKeyDictionary()


def _board(url: str) -> _Board:
    boards = _boards.setdefault(asyncio.get_running_loop(), {})
    if url not in boards:
        boards[url] = _Board(url)
    return boards[url]


# -- the receiver ------------------------------------------------------------------------------------------------------


def create_app(storage: str) -> Starlette:
    """An ASGI application that receives events for the workflows of a store."""
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError("events over HTTP need starlette: pip install 'perdure[http]'") from error
    from perdure.guarded_store import GuardedStore
    from perdure.store import open_store
    from perdure.value_settings import for_tools

    mailbox = Mailbox(GuardedStore(open_store(storage), seal=for_tools(storage).seal()))

    async def send(request: Request) -> JSONResponse:
        return await _receive(mailbox, request)

    # an id may hold slashes
    return Starlette(routes=[Route("/event/send_event/{workflow_id:path}", send, methods=["POST"])])


async def _receive(mailbox: Mailbox, request: Request) -> JSONResponse:
    from starlette.responses import JSONResponse

    def answer(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": text}, status)

    token = os.environ.get(TOKEN_VARIABLE, "")
    given = request.headers.get("authorization", "")
    if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return answer(401, "a bearer token is needed")
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= LIMIT:
            body += chunk
        elif size > LONGEST_REFUSED:
            break
    if size > LIMIT:
        return answer(413, f"an event may have {LIMIT} bytes: send a reference to what is larger")
    try:
        message = json.loads(body)
        name, payload = check_name(message["event_key"]), message["event_payload"]
    except (ValueError, KeyError, TypeError) as error:
        return answer(400, f'expected JSON {{"event_key": ..., "event_payload": ...}}: {error}')
    data = _encode(payload)
    try:
        new = await mailbox.send(request.path_params["workflow_id"], name, data)
    except WorkflowNotFoundError as error:
        return answer(404, str(error))
    except WorkflowExistsError as error:
        return answer(409, str(error))
    except ValueError as error:
        return answer(400, str(error))
    except StoreError as error:
        logger.warning("an event was not stored: %s", error)
        return answer(503, "the store did not confirm it; send it again")
    return JSONResponse({"stored": True, "again": not new})


def main(arguments: list[str] | None = None) -> int:
    """Receive events until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m perdure.http_events", description=main.__doc__)
    parser.add_argument("--storage", default=os.environ.get("PERDURE_STORAGE"), help="default: PERDURE_STORAGE")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8520)
    options = parser.parse_args(arguments)
    if not options.storage:
        parser.error("--storage is needed, or PERDURE_STORAGE")
    app = create_app(options.storage)
    import uvicorn

    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
