from __future__ import annotations

from typing import Any
from uuid import uuid4

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager
from django.db import models
from django.utils import timezone


class UserManager(BaseUserManager[Any]):
    def create_user(self, username: str, password: str | None = None) -> Any:
        user = self.model(username=username)
        user.set_password(password)
        user.save()
        return user


class UuidUser(AbstractBaseUser):
    """A user with a UUID as its key."""

    id = models.UUIDField(primary_key=True, default=uuid4)
    username = models.CharField(max_length=150, unique=True)
    date_joined = models.DateTimeField(default=timezone.now)
    is_active = models.BooleanField(default=True)
    objects: Any = UserManager()
    USERNAME_FIELD = "username"

    def __str__(self) -> str:
        return self.username


class StringUser(AbstractBaseUser):
    """A user with a string as its key, and neither `date_joined` nor a column `is_active`."""

    username = models.CharField(max_length=150, primary_key=True)
    objects: Any = UserManager()
    USERNAME_FIELD = "username"

    def __str__(self) -> str:
        return self.username
