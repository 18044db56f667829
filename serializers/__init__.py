"""Part of Perdure: see the README in this folder."""
