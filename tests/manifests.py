"""Schemas of Kubernetes manifests: the fields that we use from Kubernetes' OpenAPI and from the
operators' CustomResourceDefinitions. As with `kubectl apply --validate=strict`, an unknown field is
an error."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
NAME: Schema = {
    "type": "string",
    "maxLength": 253,
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
}
LABEL: Schema = {
    "type": "string",
    "maxLength": 63,
    "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
}
DURATION: Schema = {
    "type": "string",
    "minLength": 1,
    "pattern": r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?"
    r"(([0-9]+)ms)?)$",
}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65_535}
PORT_NAME: Schema = {
    "type": "string",
    "maxLength": 15,
    "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
}
ID: Schema = {"type": "integer", "minimum": 0}
# kubectl keeps the whole manifest in an annotation, which may have 256 KiB
MAX_BYTES = 262_144


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def mapping(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values, "minProperties": 1}


def fields(*required: str, **properties: Schema) -> Schema:
    """An object with these fields only; a trailing underscore is not part of a name."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name.rstrip("_"): each for name, each in properties.items()},
        "required": list(required),
    }


LABELS = mapping(LABEL)
METADATA = fields("name", name=NAME, namespace=NAME, labels=LABELS)
SELECTOR = fields("matchLabels", matchLabels=LABELS)
KEY = fields("key", "name", name=NAME, key=TEXT)


def kind(api: str, name: str, **content: Schema) -> Schema:
    return fields(
        "apiVersion", "kind", "metadata", *content,
        apiVersion=one_of(api), kind=one_of(name), metadata=METADATA, **content,
    )  # fmt: skip


ENDPOINTS = array(
    fields(
        "port",
        port=PORT_NAME,
        path=TEXT,
        interval=DURATION,
        scrapeTimeout=DURATION,
        params=mapping(array(TEXT)),
        authorization=fields(type=TEXT, credentials=KEY),
        relabelings=array(
            fields(action=one_of("replace"), targetLabel=TEXT, replacement=TEXT),
        ),
    )
)
RULE = fields(
    "expr",
    record=TEXT,
    alert=TEXT,
    expr=TEXT,
    for_=DURATION,
    keep_firing_for=DURATION,
    labels=mapping(TEXT),
    annotations=mapping(TEXT),
)
PROBE = fields(
    "httpGet",
    httpGet=fields("port", path=TEXT, port=PORT_NAME),
    periodSeconds=PORT,
    timeoutSeconds=PORT,
    failureThreshold=PORT,
)
QUANTITIES = mapping({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"})
CONTAINER = fields(
    "name",
    "image",
    name=PORT_NAME,
    image=TEXT,
    command=array(TEXT),
    args=array(TEXT),
    env=array(fields("name", "value", name=TEXT, value=TEXT)),
    envFrom=array(fields("secretRef", secretRef=fields("name", name=NAME))),
    ports=array(fields("containerPort", name=PORT_NAME, containerPort=PORT)),
    startupProbe=PROBE,
    livenessProbe=PROBE,
    readinessProbe=PROBE,
    resources=fields(requests=QUANTITIES, limits=QUANTITIES),
    securityContext=fields(
        allowPrivilegeEscalation=BOOLEAN,
        readOnlyRootFilesystem=BOOLEAN,
        capabilities=fields(drop=array(TEXT)),
    ),
    volumeMounts=array(fields("name", "mountPath", name=NAME, mountPath=TEXT, readOnly=BOOLEAN)),
)
POD = fields(
    "containers",
    automountServiceAccountToken=BOOLEAN,
    terminationGracePeriodSeconds=ID,
    securityContext=fields(
        runAsNonRoot=BOOLEAN,
        runAsUser=ID,
        runAsGroup=ID,
        fsGroup=ID,
        seccompProfile=fields("type", type=one_of("RuntimeDefault", "Localhost", "Unconfined")),
    ),
    containers=array(CONTAINER),
    volumes=array(
        fields("name", name=NAME, secret=fields("secretName", secretName=NAME, defaultMode=INTEGER))
    ),
)

SCHEMAS = {
    "ServiceMonitor": kind(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        spec=fields("selector", "endpoints", selector=SELECTOR, endpoints=ENDPOINTS),
    ),
    "PodMonitor": kind(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        spec=fields("selector", selector=SELECTOR, podMetricsEndpoints=ENDPOINTS),
    ),
    "PrometheusRule": kind(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        spec=fields(groups=array(fields("name", name=TEXT, rules=array(RULE)))),
    ),
    "GrafanaDashboard": kind(
        "grafana.integreatly.org/v1beta1",
        "GrafanaDashboard",
        spec=fields(
            "instanceSelector",
            instanceSelector=SELECTOR,
            allowCrossNamespaceImport=BOOLEAN,
            folder=TEXT,
            json=TEXT,
        ),
    ),
    "ConfigMap": kind("v1", "ConfigMap", data=mapping(TEXT)),
    "Deployment": kind(
        "apps/v1",
        "Deployment",
        spec=fields(
            "selector",
            "template",
            replicas=ID,
            selector=SELECTOR,
            template=fields("spec", metadata=fields(labels=LABELS), spec=POD),
        ),
    ),
    "Service": kind(
        "v1",
        "Service",
        spec=fields(
            selector=LABELS,
            ports=array(fields("port", name=PORT_NAME, port=PORT, targetPort=PORT_NAME)),
        ),
    ),
}
