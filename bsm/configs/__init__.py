"""Configs of models as frozen values, importable without torch."""
