"""One's own API keys: made, listed, revoked."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from llmsvc.http.identity import owner_of
from llmsvc.service import Service


def add_routes(router: APIRouter, service: Service) -> None:
    accounts = service.accounts

    @router.get("/v1/keys")
    def keys(request: Request) -> list[dict[str, Any]]:
        """What is known of them: the keys themselves are not."""
        return accounts.keys(owner_of(request))

    @router.post("/v1/keys")
    def make_key(request: Request, name: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """A new one. It is shown this once."""
        return accounts.make_key(owner_of(request), name)

    @router.delete("/v1/keys/{key_id}")
    def revoke_key(request: Request, key_id: str) -> dict[str, Any]:
        accounts.revoke_key(owner_of(request), key_id)
        return {"id": key_id}
