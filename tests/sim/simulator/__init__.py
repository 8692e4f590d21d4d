"""A whole cluster in one virtual-time loop, with faults from one seed, and checkers. See docs/testing.md."""
