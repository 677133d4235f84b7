"""The history: roll up rows into bitmaps of closed intervals, and count users from them."""
