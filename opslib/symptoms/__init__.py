"""JUDGE and PROPOSE. A Snapshot → findings, findings → a Plan: one pure module for each symptom."""
