"""Fakes of Google Cloud."""
