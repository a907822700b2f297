"""Builds the rooms and hands them to each other."""

import asyncio
import logging
import sys

from llmsvc.accounts import Accounts, Caller
from llmsvc.chat.completions import Completions
from llmsvc.chat.embeddings import Embeddings
from llmsvc.chat.memory import Memory
from llmsvc.chat.preferences import Preferences
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.turns import Turns
from llmsvc.errors import StorageError
from llmsvc.files.files import Files
from llmsvc.files.limits import Limits
from llmsvc.files.meaning import Meaning
from llmsvc.models.catalogue import MINILM, Catalogue
from llmsvc.models.download import fetch
from llmsvc.models.pool import Budget, ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.models.servers import Servers
from llmsvc.rates import Rates
from llmsvc.settings import Settings, in_bytes
from llmsvc.store.database import Database, Row

log = logging.getLogger(__name__)


class Service:
    """Everything behind the doors. Building it takes the data directory's lock and imports no torch."""

    def __init__(self, settings: Settings) -> None:
        """Raises LlmsvcError with the step to take."""
        self.settings = settings
        self.catalogue = Catalogue(settings.data_dir / "models", settings.model)
        self.default_model = self.catalogue.entry(settings.model).id
        self.database = Database(settings.data_dir)
        keys, open_to = settings.api_key, (settings.public, settings.guests)
        self.accounts = Accounts(self.database, settings.auth, keys, *open_to)
        compiled = None if settings.no_compile else settings.data_dir / "compiled"
        self.pool = ModelPool(
            self.catalogue,
            settings.device,
            compiled,
            settings.full_weights,
            Budget(settings.memory, settings.parked_memory, 60 * settings.idle_minutes),
            lambda model: self.preferences.loading(model),
        )
        self.servers = Servers(self.database.index("remotes"), self.pool, settings.remote)
        meaning = Meaning(lambda tell: fetch(self.catalogue, MINILM, tell))
        self.files = Files(self.database, Limits(upload=in_bytes(settings.max_upload)), meaning)
        self.sessions = Sessions(self.database, self.default_model, self.files)
        self.preferences = Preferences(self.database, self.sessions, self.pool)
        self.memory = Memory(self.database)
        rates = Rates(
            "answers", *((settings.rate_limit, settings.guest_rate_limit) if self.accounts.closed else (0, 0))
        )
        below = (self.database, self.sessions, self.pool, self.files)
        self.turns = Turns(*below, rates, self.memory, self.preferences)
        self.completions = Completions(self.pool, self.sessions, self.turns, self.preferences, rates)
        self.embeddings = Embeddings(self.completions)
        self.files.resume()

    def preload(self) -> None:
        """Look at other servers, and begin to load the default model, telling the terminal of its progress."""
        self.pool.on_progress(_TerminalProgress())
        self.servers.start()
        if not self.catalogue.entry(self.default_model).remote:
            self.pool.request(self.default_model)

    async def check_model(self, caller: Caller, model: str) -> None:
        """Raises UnknownModel for one that only the admin may bring here."""
        if model and not caller.admin:
            await asyncio.to_thread(self.completions.check, model)  # reads the disk

    def import_session(self, caller: Caller, text: str) -> Row:
        """A new session from exported text. Who may bring no model here brings none by a chat. Raises BadRequest."""
        allowed = None if caller.admin else {row["id"] for row in self.completions.listed()}
        return self.sessions.import_(caller.owner, text, allowed)

    def delete_session(self, owner: str, session_id: str) -> Row:
        """Delete a session, ending its answer first. Call on the event loop. Raises NotFound."""
        deleted = self.sessions.delete(owner, session_id)
        self.turns.abandon(session_id)
        self.files.halt(session_id)
        return deleted

    def restore_session(self, owner: str, session_id: str) -> Row:
        """Undo a deletion; what was not parsed yet goes on. Raises NotFound when it is too late."""
        restored = self.sessions.restore(owner, session_id)
        self.files.wake(session_id)
        return restored

    def select_branch(self, owner: str, session_id: str, message_id: str, version: int | None = None) -> Row:
        """Show another branch. Call on the event loop. Raises NotFound, or Conflict while an answer runs."""
        self.turns.check_resting(owner, session_id, version)
        return self.sessions.select_branch(owner, session_id, message_id)

    def tidy(self) -> None:
        """Free what deleted sessions hold once their undo time is over, and idle models. Call about once a minute."""
        self.pool.tidy()
        try:
            self.sessions.purge()
        except StorageError as error:
            log.warning("%s", error)

    async def stop(self) -> None:
        """Stop turns, engines and the store, in that order."""
        await self.turns.close()
        await asyncio.to_thread(self.files.close)
        await asyncio.to_thread(self.servers.close)
        await asyncio.to_thread(self.pool.close)
        self.database.close()


class _TerminalProgress:
    """One line per stage; on a terminal it is a bar that moves."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, pooled: PooledModel) -> None:
        if pooled.state in ("parked", "unloaded"):
            return
        if pooled.state != "loading":
            text = f"{pooled.id} is ready." if pooled.state == "ready" else f"{pooled.id}: {pooled.error}"
            print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)
            self._stage = ""
        elif sys.stdout.isatty():
            filled = 30 * pooled.done // pooled.total if pooled.total else 0
            print(f"\r\033[K{'█' * filled}{'░' * (30 - filled)} {pooled.stage}", end="", flush=True)
        elif pooled.stage != self._stage:
            self._stage = pooled.stage
            print(f"{pooled.stage}…", flush=True)
