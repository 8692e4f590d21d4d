"""FireflyFS: a distributed parallel file system for AI clusters."""

__version__ = "0.1.0"
