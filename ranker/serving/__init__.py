"""A server: which calls are let in, which bundle answers them, and how."""
