"""Django's commands for the demo site: `python -m demo.manage COMMAND`."""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "demo.website.settings"
    execute_from_command_line(sys.argv)
