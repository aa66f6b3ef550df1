"""The stage before the ranker: of many candidates it keeps those that the ranker is likely to put first."""
