"""Draw the pictures of docs/growth.md: python -m docs.pictures"""
