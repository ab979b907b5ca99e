"""Thin drivers, one per stage: read records, call one pure function, write records."""
