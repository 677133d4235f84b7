"""Between? Rows -> bitmaps of closed intervals -> numbers."""
