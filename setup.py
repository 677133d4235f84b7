import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
HOME = "https://github.com/appsembler/django-souvenirs"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "souvenirs/__init__.py").read_text())
assert VERSION

# Files for operators lie at the top of the repository, and inside the package of the wheel
OPERATORS = {
    "souvenirs_metrics.grafana": "grafana",
    "souvenirs_metrics.prometheus": "prometheus",
}


def readme() -> str:
    """README.md for PyPI, which has no files that its relative links could point to."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"(!\[[^]]*\]\()(?![a-z]+:)", rf"\1{HOME}/raw/master/", text)
    return re.sub(r"\]\((?![a-z]+:|#)", f"]({HOME}/blob/master/", text)


setup(
    name="django-souvenirs",
    version=VERSION[1],
    description="How active are a Django site's users? Exact counts, and a Prometheus exporter.",
    long_description=readme(),
    long_description_content_type="text/markdown",
    url=HOME,
    project_urls={
        "Documentation": f"{HOME}/tree/master/docs",
        "Source": HOME,
        "Changes": f"{HOME}/blob/master/CHANGELOG.md",
        "Issues": f"{HOME}/issues",
        "Security": f"{HOME}/blob/master/SECURITY.md",
    },
    license="MIT",
    license_files=["LICENSE"],
    keywords=["django", "activity", "active users", "usage", "prometheus", "openmetrics"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Web Environment",
        "Framework :: Django",
        "Framework :: Django :: 5.2",
        "Framework :: Django :: 6.0",
        "Framework :: Django :: 6.1",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: System :: Monitoring",
        "Typing :: Typed",
    ],
    packages=[
        *find_packages(
            include=["souvenirs", "souvenirs.*", "souvenirs_metrics", "souvenirs_metrics.*"]
        ),
        *OPERATORS,
    ],
    package_dir=OPERATORS,
    package_data={
        "souvenirs": ["py.typed", "templates/**/*.html", "static/**/*.css"],
        "souvenirs_metrics": ["py.typed"],
        **{package: ["**/*.yml", "**/*.json", "*.libsonnet"] for package in OPERATORS},
    },
    zip_safe=False,
    entry_points={"pytest11": ["souvenirs = souvenirs.pytest_plugin"]},
    python_requires=">=3.10",
    install_requires=[
        "Django>=5.2.4,<6.2",
        "prometheus-client>=0.23",
        "pyroaring>=1.0",
        "python-dateutil>=2.9",
        "tabulate>=0.9",
        "tqdm>=4.60",
    ],
    extras_require={
        "django-prometheus": ["django-prometheus>=2.4"],
        "redis": ["redis>=5.2.1"],
        # For work on the project itself
        "demo": ["django-prometheus>=2.4", "gunicorn>=22", "requests>=2.31"],
        "test": [
            "axe-playwright-python>=0.1.4",
            "build>=1.2",
            "django-allauth[headless]>=65.4",
            "django-hijack>=3.7",
            "django-impersonate>=1.9.5",
            "django-loginas>=0.3.11",
            "django-ninja>=1.4",
            "django-oauth-toolkit>=3.0",
            "django-tenants>=3.10",
            "djangorestframework>=3.16",
            "djangorestframework-simplejwt>=5.5",
            "gojsonnet>=0.22",
            "grafana-foundation-sdk~=0.0.18; python_version >= '3.11'",
            "hypothesis>=6.100",
            "jsonschema>=4.20",
            "mysqlclient>=2.2.1",
            "playwright>=1.45",
            "psycopg[binary,pool]>=3.2",
            "PyYAML>=6",
            "pytest>=8.3",
            "pytest-cov>=6",
            "pytest-django>=4.9",
            "pytest-randomly>=3.15",
            "pytest-xdist>=3.8",
            "redis>=5.2.1",
            "time-machine>=2.15",
            "uvicorn>=0.30",
        ],
        "lint": [
            "django-stubs[compatible-mypy]>=5.2",
            "mypy>=1.15",
            "ruff>=0.9",
            "types-python-dateutil",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
