"""Symbols, tensors, event tensors, device functions, graphs; derivation, proofs, simulation."""
