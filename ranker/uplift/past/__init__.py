"""Reports of earlier days: two of them side by side, and an index of all in a folder."""
