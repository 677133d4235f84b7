from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User

from souvenirs.admin import LastSeenMixin

admin.site.unregister(User)


@admin.register(User)
class PeopleAdmin(LastSeenMixin, UserAdmin):  # type: ignore[type-arg]
    """The list of users, with when each was last seen."""

    list_display = ("username", "date_joined", "is_active")
