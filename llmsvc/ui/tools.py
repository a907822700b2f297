"""The endpoints as tools of the Model Context Protocol, with ``--mcp``: Gradio's server, asking as whoever asked it."""

from gradio_client import Client

from llmsvc.errors import Unavailable

_PROOF = ("authorization", "x-api-key", "cookie")


def install() -> None:
    """Before the page is launched. Raises Unavailable without the package."""
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise Unavailable("--mcp needs the package mcp. Run make run, or pip install -r requirements.txt.") from None
    from gradio.mcp import GradioMCPServer

    GradioMCPServer._get_or_create_client = _own_client


def _own_client(server: object) -> Client:
    """Gradio has one client without a login for all callers: nothing could be asked where a login is needed."""
    found = server.mcp_server.request_context.request.headers  # type: ignore[attr-defined]
    kept = {name: found[name] for name in _PROOF if name in found}
    return Client(
        server.local_url,  # type: ignore[attr-defined]
        download_files=False,
        verbose=False,
        analytics_enabled=False,
        headers=kept,
    )
