"""Figures of a ranking: PairAccuracy, NDCG, MAP, MRR and AUC of lists, intervals of an uplift, importance, curves."""
