"""Routes beside the page: health, readiness, and sessions for scripts and links."""

from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from llmsvc.http import anthropic, embeddings, keys, login, metrics, openai, responses
from llmsvc.http.errors import ApiRoute
from llmsvc.http.identity import owner_of
from llmsvc.http.sse import event_id, events, placed
from llmsvc.service import Service


def make_routes(service: Service, counts: metrics.Counts) -> APIRouter:
    router = APIRouter(route_class=ApiRoute)

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Alive."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """200 only when a request for the default model would be answered without loading it."""
        pooled = service.pool.get(service.default_model)
        state = pooled.state if pooled else "unloaded"
        return JSONResponse(
            {"model": service.default_model, "state": state}, 200 if state in ("ready", "parked") else 503
        )

    @router.get("/v1/sessions/{session_id}/stream")
    async def stream(session_id: str, request: Request, last_event_id: Annotated[str, Header()] = "") -> Response:
        """Server-sent events of the running turn, or of the last; ``Last-Event-ID`` resumes exactly after it."""
        turn = service.turns.last(owner_of(request), session_id)
        if turn.finished and last_event_id == event_id(turn):
            return Response(status_code=204)  # by the specification: there is nothing more, do not come again
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        found = events(service.turns, turn, last_event_id)
        return StreamingResponse(found, media_type="text/event-stream", headers=headers)

    @router.get("/v1/sessions/{session_id}/turn")
    async def turn(session_id: str, request: Request) -> JSONResponse:
        """The running turn, or the last, as it is now: what the stream's first event says."""
        found = service.turns.last(owner_of(request), session_id)
        return JSONResponse({**found.status(), **placed(found)}, headers={"Cache-Control": "no-store"})

    @router.get("/v1/sessions/{session_id}/export")
    def export(session_id: str, request: Request, format: str = "json") -> Response:
        """The session as a file: ``json`` or ``markdown``."""
        text = service.sessions.export(owner_of(request), session_id, format)
        kind, ending = ("application/json", "json") if format == "json" else ("text/markdown; charset=utf-8", "md")
        disposition = f'attachment; filename="chat-{session_id[:8]}.{ending}"'
        return Response(text, media_type=kind, headers={"Content-Disposition": disposition})

    for api in (login, keys, openai, responses, embeddings, anthropic):
        api.add_routes(router, service)
    metrics.add_routes(router, service, counts)
    return router
