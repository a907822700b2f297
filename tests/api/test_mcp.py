"""The endpoints as tools, through the official client."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import PARIS
from conftest import App, with_models_of
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

KEY, OTHER = "a-key-of-the-command-line", ("ann", "one two")


@pytest.fixture(scope="module")
def offering(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Iterator[App]:
    own = with_models_of(data_dir, tmp_path_factory.mktemp("mcp"))
    running = App(own, "--mcp", "--auth", ":".join(OTHER), "--api-key", KEY).wait()
    yield running
    running.stop()


def with_tools(app: App, key: str, use: Any) -> Any:
    async def work() -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            streamablehttp_client(f"{app.url}/gradio_api/mcp", headers=headers) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await use(session)

    return asyncio.run(work())


def test_tools_are_listed_and_called(offering) -> None:
    async def use(session: ClientSession) -> tuple[set[str], str]:
        names = {tool.name for tool in (await session.list_tools()).tools}

        async def call(name: str, **values: Any) -> Any:
            result = await session.call_tool(name, values)
            assert not result.isError, result.content
            return [part.text for part in result.content]

        made = json.loads(
            (await call("session_create", title="By a tool"))[0].replace("'", '"').replace("None", "null")
        )
        said = await call(
            "chat", session_id=made["id"], message="What is the capital of France?", temperature=0, max_tokens=20
        )
        return names, said[0]

    names, said = with_tools(offering, KEY, use)
    assert {"session_create", "session_list", "chat", "file_list", "model_list"} <= names
    assert PARIS in said
    login = httpx.Client(base_url=offering.url)
    login.post("/login", data={"username": OTHER[0], "password": OTHER[1]})
    listed = login.post("/gradio_api/call/session_list", json={"data": [""]}).json()["event_id"]
    assert "By a tool" not in login.get(f"/gradio_api/call/session_list/{listed}").text  # it is the key's owner's


def test_without_a_key_there_are_no_tools(offering, app) -> None:
    for path in ("", "/", "/sse", "/schema", "/messages/"):
        assert httpx.post(f"{offering.url}/gradio_api/mcp{path}", json={}).status_code == 401
        with_key = httpx.get(f"{offering.url}/gradio_api/mcp{path}", headers={"x-api-key": KEY})
        assert with_key.status_code in ((200, 307) if path in ("", "/") else (404,))
        assert httpx.post(f"{app.url}/gradio_api/mcp{path}", json={}).status_code == 404  # off by default
