"""Studies: named variants of a run and several seeds; one table and one plot of what they gave."""
