"""Fitting candidates and writing them as graphs; pure computation."""
