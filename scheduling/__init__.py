"""Target records, cost model, placement policies, pruning, proofs of schedules, estimates."""
