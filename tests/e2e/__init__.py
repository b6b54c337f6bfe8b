"""The test bed for the real Claude Code client: everything is real but the model and the network."""
