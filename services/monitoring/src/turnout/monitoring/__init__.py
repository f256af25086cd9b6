"""Decides from what was scored and what really happened which version every router must use."""
