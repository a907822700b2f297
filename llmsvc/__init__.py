"""llmsvc: a self-hosted LLM chat service in a single Python process."""

__version__ = "0.1.0"
