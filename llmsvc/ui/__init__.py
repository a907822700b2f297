"""The Gradio page and its named endpoints."""

from llmsvc.ui import fast_import as fast_import  # before any other import of gradio
