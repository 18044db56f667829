"""Test doubles shared by the tests of the core."""
