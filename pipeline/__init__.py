"""The system around the models: data, training, evaluation, tracking, registry and serving."""
