"""User models that sites may have instead of Django's."""
