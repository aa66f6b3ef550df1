"""Features to ranked lists: candidates, training, bundle, server, uplift and the command line."""
