"""Uploaded files: kept, parsed in child processes, cut into chunks, found again."""
