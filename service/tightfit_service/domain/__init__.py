"""The values and rules of tightfit; standard library only."""
