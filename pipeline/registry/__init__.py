"""Register, compare, promote, roll back, evaluate and use model versions."""
