"""What one process leaves on disk for the next: traced programs and tables, beside what JAX's own compiler keeps there."""
