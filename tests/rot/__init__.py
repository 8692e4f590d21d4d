"""Rotten chunks in a chain of replicas: what tests share."""
