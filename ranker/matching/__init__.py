"""What a candidate has to do with its request's source item and query: features of the ranker, fitted before t1."""
