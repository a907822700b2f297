"""What is set of how answers are made: for all chats, for a model, for one chat; and what a model brings of it."""

from llmsvc.chat import options
from llmsvc.chat.sessions import Sessions
from llmsvc.formats import templates
from llmsvc.models.pool import ModelPool
from llmsvc.store.database import Database, Row


class Preferences:
    """Layers of options, each over those before it: defaults, model's own, all chats', model's settings, the chat's."""

    def __init__(self, database: Database, sessions: Sessions, pool: ModelPool) -> None:
        self._db, self._sessions, self._pool = database, sessions, pool

    def settings(self, model: str = "") -> Row:
        """Every option, as it is for ``model`` when nobody says otherwise; ``from_model``: what it brings of them."""
        from_model = self.brought(model)
        return {**options.merged(from_model, *self._layers(model)), **self.loading(model), "from_model": from_model}

    def loading(self, model: str = "") -> Row:
        """How ``model`` is loaded: ``options.LOADING``."""
        return options.merged(*self._layers(model), known=options.LOADING)

    def set_settings(self, values: Row, model: str = "") -> Row:
        """Change defaults, of all models or of one; None takes one back. Raises BadRequest."""
        values = {name: value for name, value in values.items() if name != "from_model"}  # what ``settings`` gave
        model = model and self._pool.catalogue.entry(model).id
        self._check_mode(model, values)
        key = f"sampling:{model}" if model else "sampling"
        self._db.set_setting(key, _changed(self._db.setting(key), values, {**options.DEFAULTS, **options.LOADING}))
        return self.settings(model)

    def set_session_settings(self, owner: str, session_id: str, values: Row) -> Row:
        """Change options of one session; None takes one back to the default. Raises BadRequest, NotFound."""
        session = self._sessions.row(owner, session_id)
        values = {name: value for name, value in values.items() if name != "from_model"}
        self._check_mode(session["model"], values)
        self._sessions.set_settings(owner, session_id, _changed(session["settings"], values, options.DEFAULTS))
        return self.session_settings(owner, session_id)

    def session_settings(self, owner: str, session_id: str) -> Row:
        """Every option, as it is in one session, and ``from_model``: see ``settings``. Raises NotFound."""
        session = self._sessions.row(owner, session_id)
        from_model = self.brought(session["model"])
        layers = (*self._layers(session["model"]), session["settings"])
        return {**options.merged(from_model, *layers), "from_model": from_model}

    def from_model(self, model: str, *above: Row) -> set[str]:
        """The options for which a model's own values stand: nobody set them, nor do the layers ``above`` settings."""
        said = options.layered(*self._layers(model), *above)
        return {name for name in self.brought(model) if name not in said}

    def brought(self, model: str) -> Row:
        """The sampling that a loaded model was published with, and the system prompt that we know to suit it."""
        if not model:
            return {}
        pooled, system = self._pool.get(model), self._pool.catalogue.entry(model).system
        loaded = pooled.loaded if pooled is not None else None
        sampling = options.brought(loaded.sampling) if loaded is not None else {}
        return {**sampling, "system": system} if system else sampling

    def modes(self, model: str) -> tuple[str, ...] | None:
        """The modes of thinking that a model knows; None while it is not loaded."""
        pooled = self._pool.get(model)
        loaded = pooled.loaded if pooled is not None else None
        return None if loaded is None else templates.can_think(loaded.tokenizer)

    def of_answer(self, session: Row, model: str, values: Row) -> Row:
        """Checked options of one answer, as far as anybody set them. Raises BadRequest."""
        said = {k: v for k, v in values.items() if v is not None and v != ""}
        self._check_mode(model, said)
        return options.layered(*self._layers(model), session["settings"], said)

    def _check_mode(self, model: str, values: Row) -> None:
        """Raises BadRequest for a mode of thinking that this model does not know, as far as that can be said."""
        if model:
            options.check_remote(model, values)
        mode = options.checked({"thinking": values.get("thinking")})["thinking"]
        if mode and model and (modes := self.modes(model)) is not None:
            options.check_mode(mode, modes, model)

    def _layers(self, model: str) -> list[Row]:
        return [self._db.setting("sampling"), self._db.setting(f"sampling:{model}") if model else {}]


def _changed(settings: Row, values: Row, known: Row) -> Row:
    """Settings with some of them changed; gone are those whose new value is None, and a system prompt that is empty.

    Raises BadRequest.
    """
    empty = {"system"} if not str(values.get("system") or "").strip() else set[str]()
    changed = options.checked({k: v for k, v in values.items() if v is not None and k not in empty}, known)
    return {**{k: v for k, v in settings.items() if k not in values}, **changed}
