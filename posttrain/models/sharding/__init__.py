"""One model over several ranks (FSDP2): where its weights lie, how they get there, and how they are read whole."""
