"""Rows and records → what a person reads: tables, charts, frames, reports and their archive."""
