"""Two sites in one process, each in a separate interpreter, as mod_wsgi runs them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

# pyroaring can be loaded by only one interpreter of a process
SECOND_SITE = """
import os
import sys
import textwrap
from django.conf import settings
import pyroaring

code = textwrap.dedent('''
    import os, sys
    sys.path[:] = {path!r}
    os.environ["DJANGO_SETTINGS_MODULE"] = {module!r}
    import django
    django.setup()
    from django.core.checks import run_checks
    from django.contrib.auth.models import User
    from souvenirs.control import count_active_users, souvenez
    assert [m for m in run_checks() if m.level >= 40] == []
    for name in ("eve", "bob"):
        assert souvenez(User.objects.create(username=name)) == "added"
    User.objects.get(username="bob").delete()  # must work, even if nothing can be counted
    assert "pyroaring" not in sys.modules
    try:
        import pyroaring
    except ImportError:
        os.write(1, b"refused")  # an assumption of this test
''').format(path=sys.path, module=os.environ["DJANGO_SETTINGS_MODULE"])

if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    interpreter = interpreters.create("legacy")
    assert interpreters.run_string(interpreter, code) is None
else:
    import _xxsubinterpreters as interpreters
    interpreter = interpreters.create(isolated=False)
    interpreters.run_string(interpreter, code)
from souvenirs.models import Souvenir
print("", Souvenir.objects.count())
sys.stdout.flush()
os._exit(0)  # extension modules do not support the end of a second interpreter
"""


@pytest.mark.own_site
def test_second_interpreter__of_a_process_records(run_site: Callable[..., str]) -> None:
    assert run_site(SECOND_SITE) == "refused 1\n"
