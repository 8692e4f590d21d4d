"""Decisions of both sides of a ring; no clock, system call or memory of anybody's."""
