"""Since when? Stores of the last time that each user was seen."""
