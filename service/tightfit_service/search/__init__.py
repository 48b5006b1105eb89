"""Samplers, the solver and the sensitivity model: numpy and scipy only, ask and tell, seeded."""
