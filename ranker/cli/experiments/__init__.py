"""The commands that read what was served in several ways: an experiment's arms, lists in a drawn order."""
