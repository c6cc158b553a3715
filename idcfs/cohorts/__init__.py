"""Cohorts: folders that a query or a manifest defines."""
