"""The KV cache under load: shared by tests on whole clusters."""
