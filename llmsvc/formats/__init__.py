"""What families of models write and read: chat templates, reasoning, tool calls. Knows no chat and no engine."""
