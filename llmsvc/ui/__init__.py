"""The Gradio page and its named endpoints."""
