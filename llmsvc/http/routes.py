"""Health and readiness."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from llmsvc.service import Service


def make_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Alive."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """200 only when a request for the default model would be answered at once."""
        pooled = service.pool.get(service.default_model)
        state = pooled.state if pooled else "unloaded"
        return JSONResponse({"model": service.default_model, "state": state}, 200 if state == "ready" else 503)

    return router
