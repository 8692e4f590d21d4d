"""The KV cache: blocks of bytes under hashed keys on the storage servers of a FireflyFS."""
