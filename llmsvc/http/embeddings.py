"""OpenAI's embeddings. https://platform.openai.com/docs/api-reference/embeddings"""

import base64
from array import array
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from llmsvc.errors import BadRequest
from llmsvc.http.answers import while_there
from llmsvc.http.identity import owner_of
from llmsvc.service import Service


class EmbeddingRequest(BaseModel):
    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def texts(self) -> list[Any]:
        single = isinstance(self.input, str) or (self.input and isinstance(self.input[0], int))
        return [self.input] if single else list(self.input)


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> dict[str, Any]:
        """Texts as vectors of length 1: the mean of the model's last hidden states."""
        owner = owner_of(request)
        if body.dimensions is not None:
            raise BadRequest("dimensions is not supported. Leave it out: vectors have the model's own size.")
        model, vectors, tokens = await while_there(request, service.embeddings.make(owner, body.model, body.texts()))
        coded = [_base64(vector) for vector in vectors] if body.encoding_format == "base64" else vectors
        rows = [{"object": "embedding", "index": number, "embedding": one} for number, one in enumerate(coded)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": model, "data": rows, "usage": usage}


def _base64(vector: list[float]) -> str:
    """32-bit floats, as the machine has them: little-endian on all that we run on."""
    return base64.b64encode(array("f", vector).tobytes()).decode()
