"""Helpers for tests of DAGs that use this package; see ``plugin`` for the pytest fixtures."""
