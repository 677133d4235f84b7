from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Tenant(TenantMixin):  # type: ignore[misc]
    name = models.CharField(max_length=50)


class Domain(DomainMixin):  # type: ignore[misc]
    pass
