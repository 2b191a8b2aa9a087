"""Encoders of modalities, one file each: what a row holds of it to one normalised vector. None knows another."""
