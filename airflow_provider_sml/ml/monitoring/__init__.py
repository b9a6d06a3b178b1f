"""Monitoring: scores of each day, drift against the training rows, performance once labels have arrived."""
