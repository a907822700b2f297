"""Conversations: sessions, the answers being generated in them, and the prompts they need."""
