"""Blocks of model families, written in named operators."""
