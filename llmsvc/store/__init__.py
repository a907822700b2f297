"""Everything that persists, in TinyDB."""
