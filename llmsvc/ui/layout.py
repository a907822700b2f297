"""The components of the page and where they stand. What they do is in ``page``."""

from pathlib import Path
from typing import Any

import gradio as gr

from llmsvc.chat.options import LIMITS
from llmsvc.service import Service
from llmsvc.ui import chat, files, keys, memory, models, sidebar

GREETING = """<div class="greeting"><h2>What shall we talk about?</h2>
<p>Every chat is kept on this machine. Enter sends, Shift+Enter starts a new line.</p>{note}</div>"""
BETTER = "The Models tab offers better ones for this machine."
ONLY_ADMIN = '<p class="hint">Only the admin of this service can change this; each chat has its own, at the right.</p>'
NO_LOADING = '<p class="hint">Only the admin of this service loads and unloads models. You can use those above.</p>'
KNOBS = ("system", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
LOADING = ("context", "keep_alive")
INFO = {
    "temperature": "0 always takes the likeliest token",
    "top_p": "Share of the likeliest tokens",
    "top_k": "0 is off",
    "min_p": "Least share of the likeliest token's chance; 0 is off",
    "repetition_penalty": "1 is off",
}
"""Of those that a model may bring."""
FROM_MODEL = "From the model"
AS_MADE = ("As the model is made", "")
ASSETS = Path(__file__).resolve().parents[2] / "assets"


class Layout:
    """Built inside the Blocks context."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.saved = gr.BrowserState("", storage_key="llmsvc-session", secret="llmsvc")
        self._sidebar()
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat", elem_id="tab-chat"):
                self._chat()
            with gr.Tab("Models", id="models", elem_id="tab-models") as self.models_tab:
                self._models()
            with gr.Tab("Files", id="files", elem_id="tab-files"):
                self._files()
            with gr.Tab("Settings", id="settings", elem_id="tab-settings") as self.settings_tab:
                gr.HTML('<p class="hint">How answers are made, in every chat. Saved as you change them.</p>')
                self.only_admin = gr.HTML(ONLY_ADMIN, visible=False)
                self.whose = gr.Dropdown(
                    [("Every model", "")], value="", label="Defaults of", info="A model's own go first", elem_id="whose"
                )
                self.defaults = {**_knobs(), **_loading()}
                self.common = gr.Button("Back to those of every model", visible=False, size="sm", elem_id="common")
                self.keys = keys.Keys(self._service)
        with gr.Sidebar(width=300, elem_id="panel", position="right", open=False) as self.panel:
            gr.HTML('<h3 class="panel-title">This chat</h3><p class="hint">Over the defaults in Settings.</p>')
            self.thinking = gr.Dropdown(
                [AS_MADE], value="", label="Thinking", info="Before each answer", visible=False, elem_id="thinking"
            )
            self.budget = gr.Number(
                label="Longest thinking",
                info="In tokens; 0 is no bound",
                precision=0,
                minimum=LIMITS["thinking_budget"][0],
                maximum=LIMITS["thinking_budget"][1],
                visible=False,
                elem_id="thinking-budget",
            )
            self.own = _knobs()
            self.reset = gr.Button("Back to the defaults", size="sm", elem_id="reset")
            with gr.Accordion("Memory", open=False, elem_id="memory-part") as self.memory_part:
                self.memory = gr.HTML(elem_id="memory", js_on_load=memory.JS, apply_default_css=False)
            self.links = gr.HTML(elem_id="links", apply_default_css=False)
            self.bring = gr.UploadButton(
                "Import a chat", file_types=[".json", ".md", ".markdown"], size="sm", elem_id="import"
            )

    def _sidebar(self) -> None:
        with gr.Sidebar(width=280, elem_id="sidebar"):
            gr.HTML('<div class="brand"><svg viewBox="0 0 16 16"><path d="M8 1l7 7-7 7-7-7z"/></svg>llmsvc</div>')
            self.new = gr.Button("+ New chat", elem_id="new-chat")
            self.query = gr.Textbox(
                placeholder="Search chats", show_label=False, container=False, elem_id="search", label="Search chats"
            )
            self.list = gr.HTML(elem_id="sessions", js_on_load=sidebar.JS, apply_default_css=False)
            self.undo = gr.Button(visible=False, elem_id="undo")

    def _chat(self) -> None:
        self.chip = gr.HTML(elem_id="chip", js_on_load=models.JS, apply_default_css=False)
        look: dict[str, Any] = {
            "show_label": False,
            "container": False,
            "height": "auto",
            "buttons": ["copy"],
            "sanitize_html": True,
            "layout": "bubble",
            "group_consecutive_messages": False,
            "latex_delimiters": chat.LATEX,
        }
        with gr.Column(elem_id="scroll"):
            self.earlier = gr.Button("Show earlier", visible=False, size="sm", elem_id="earlier")
            note = self._service.pool.catalogue.entry(self._service.default_model).note
            greeting = GREETING.format(note=f"<p>{note} {BETTER}</p>" if note else "")
            self.history = gr.Chatbot(elem_id="history", placeholder=greeting, label="Conversation", **look)
            self.recent = gr.Chatbot(elem_id="recent", label="Newest messages", **look)
            self.live = gr.Chatbot(elem_id="live", label="Running answer", **look)
            self.more = gr.Button("Continue", visible=False, size="sm", elem_id="continue")
        self.waiting = gr.HTML(elem_id="waiting", js_on_load=(ASSETS / "bus.js").read_text(), apply_default_css=False)
        self.editing = gr.HTML(elem_id="editing", apply_default_css=False)
        self.files = gr.HTML(elem_id="chips", js_on_load=(ASSETS / "files.js").read_text(), apply_default_css=False)
        with gr.Row(elem_id="ask"):
            self.attach = gr.UploadButton("Attach files", file_count="multiple", elem_id="attach", min_width=0)
            self.box = gr.MultimodalTextbox(
                placeholder="Message llmsvc…",
                show_label=False,
                container=False,
                sources=[],
                max_lines=8,
                max_plain_text_length=1_000_000,  # what is pasted stays text
                elem_id="composer",
                label="Message",
                autofocus=True,
            )
        self.pipe = gr.HTML(elem_id="pipe", js_on_load=(ASSETS / "live.js").read_text(), apply_default_css=False)
        # Words that the server changes: which answer to watch, and that there is something to ask for.
        self.go = gr.Textbox(visible="hidden", elem_id="go")
        self.news = gr.Textbox(visible="hidden", elem_id="news")

    def _files(self) -> None:
        gr.HTML(files.hint(self._service.files.limits))
        self.attach_here = gr.UploadButton("Add files", file_count="multiple", size="sm", elem_id="attach-here")
        self.file_text = gr.HTML(elem_id="file-text", apply_default_css=False)
        self.file_list = gr.HTML(elem_id="file-list", apply_default_css=False)

    def _models(self) -> None:
        self.table = gr.HTML(elem_id="model-list", js_on_load=models.JS, apply_default_css=False)
        self.no_loading = gr.HTML(NO_LOADING, visible=False)
        with gr.Row(elem_id="load-row"):
            self.choice = gr.Dropdown(
                choices=models.choices(self._service.catalogue.list()),
                value=self._service.default_model,
                allow_custom_value=True,
                label="Load a model",
                info="One from the list, any Hugging Face id, a folder with safetensors, or a GGUF file",
                scale=4,
            )
            self.quantization = gr.Dropdown(
                ["none", "int8", "nf4"], value="none", label="Quantization", info="bitsandbytes", scale=1
            )
        self.forecast = gr.HTML(elem_id="forecast", apply_default_css=False)
        with gr.Row(elem_id="load-buttons") as self.load_buttons:
            self.load = gr.Button("Load", variant="primary", elem_id="load-model", scale=4)
            self.delete = gr.Button("Delete its files", elem_id="delete-model", scale=1)
        self.suggested = gr.HTML(elem_id="suggested", js_on_load=models.JS, apply_default_css=False)
        with gr.Accordion("Find a model on Hugging Face", open=False, elem_id="hub") as self.hub:
            self.wanted = gr.Textbox(label="Search", info="By name or maker; press Enter", max_lines=1)
            self.found = gr.HTML(elem_id="found", js_on_load=models.JS, apply_default_css=False)
        with gr.Accordion("Remote servers", open=False, elem_id="remote") as self.remote:
            self.servers = gr.HTML(elem_id="servers", js_on_load=models.JS, apply_default_css=False)
            with gr.Row(elem_id="remote-row"):
                self.url = gr.Textbox(
                    label="Address", info="Of a server with an OpenAI API: http://10.0.0.5:8000", max_lines=1, scale=3
                )
                self.key = gr.Textbox(label="API key", info="If it wants one", type="password", max_lines=1, scale=2)
            self.add = gr.Button("Add", size="sm", elem_id="add-server")


def _loading() -> dict[str, Any]:
    """One component for each of LOADING."""
    with gr.Row(elem_id="loading"):
        return {
            "context": gr.Number(
                label="Context",
                info="Tokens that it reads at most, from its next load on; 0 is all",
                precision=0,
                minimum=0,
            ),
            "keep_alive": gr.Number(
                label="Unload after", info="Minutes without use; 0 is as the service was started, -1 never", minimum=-1
            ),
        }


def _knobs() -> dict[str, Any]:
    """One component for each of KNOBS."""
    return {
        "system": gr.Textbox(lines=3, label="System prompt", info="Instructions before the conversation"),
        "temperature": gr.Slider(*LIMITS["temperature"], step=0.05, label="Temperature", info=INFO["temperature"]),
        "top_p": gr.Slider(0, 1, step=0.01, label="Top-p", info=INFO["top_p"]),
        "top_k": gr.Slider(0, 200, step=1, label="Top-k", info=INFO["top_k"]),
        "min_p": gr.Slider(0, 1, step=0.01, label="Min-p", info=INFO["min_p"]),
        "repetition_penalty": gr.Slider(0.5, 2, step=0.01, label="Repetition penalty", info=INFO["repetition_penalty"]),
        "max_tokens": gr.Slider(16, 8192, step=16, label="Longest answer", info="In tokens"),
        "seed": gr.Textbox(label="Seed", info="A whole number repeats answers; empty is random", max_lines=1),
    }
