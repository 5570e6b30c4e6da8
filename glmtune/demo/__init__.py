"""The embedded tiny GLM-4 and its data: everything a bare machine needs to try glmtune."""
