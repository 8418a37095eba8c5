"""Mesh, logical axis rules, shardings."""
