"""Chat templates: how a conversation is rendered, which of its tokens train, and the proof of both."""
