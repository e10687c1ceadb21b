"""Recipes of the ViT paper and of AugReg, one file each."""
