"""Reward models: their folders, their scores and their export."""
