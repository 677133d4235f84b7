"""gunicorn's settings for the site: several processes of several threads each."""

wsgi_app = "tests.site.wsgi"
workers = 2
threads = 4
graceful_timeout = 3
control_socket_disable = True  # the default is one file for all sites of a machine's user
