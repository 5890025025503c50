"""JPEG: files, coefficients, transforms, and networks over coefficients."""
