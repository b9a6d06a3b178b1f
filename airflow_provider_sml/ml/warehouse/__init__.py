"""The warehouse: tables for analysts, published from the lake's snapshots."""
