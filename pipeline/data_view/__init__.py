"""Look at shards: photos, masks and the targets that a model is trained on."""
