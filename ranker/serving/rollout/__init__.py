"""Bundles in motion: what is deployed, how a new bundle is tried beside it, and who asks for the change."""
