"""Durable workflows on Ray: the connection of drivers, the coordinator as an actor, tasks and their values.

Everything that imports Ray is here or in `perdure.events`; the core above runs without it, as the simulation shows.
"""
