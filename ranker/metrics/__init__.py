"""Figures of a ranking: PairAccuracy, NDCG and its kin, intervals, what a booster's columns do."""
