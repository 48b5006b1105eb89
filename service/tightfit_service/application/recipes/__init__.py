"""Recipes: what their steps say, which techniques there are, how one is made and read."""
