import os

from django.core.wsgi import get_wsgi_application

from souvenirs.recording import throttle

application = get_wsgi_application()

# So that a test of the recovery from a crash need not wait for a minute
throttle.CLAIM_SECONDS = int(os.environ.get("SITE_CLAIM_SECONDS", throttle.CLAIM_SECONDS))
