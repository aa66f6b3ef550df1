"""Full-text search of items: texts as tokens, and the BM25 index over them that a bundle holds."""
