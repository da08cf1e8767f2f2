"""Stable Diffusion, whole, in one small package."""
