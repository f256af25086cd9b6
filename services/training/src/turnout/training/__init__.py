"""Decides how a candidate is fitted, and turns it into one ONNX graph from raw columns to score."""
