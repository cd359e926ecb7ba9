"""What may stand where a Linear stands: one file a kind. Each has in_features, out_features and dense_weight()."""
