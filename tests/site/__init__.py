"""A small site that tests serve with gunicorn (serving.py), or run threads in (threads.py)."""
