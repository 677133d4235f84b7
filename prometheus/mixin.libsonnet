// The alerts, recording rules and dashboards as a monitoring mixin, for Jsonnet 0.21 and later.
// With the default _config they equal souvenirs.rules.yml and the files in ../grafana/dashboards,
// which are imported here. Override _config where you import this file:
//
//     (import 'mixin.libsonnet') + { _config+:: { thresholds+: { seats: 500 } } }
//
// The commands are in docs/grafana.md. Tests: tests/test_mixin.py.

local groups = std.parseYaml(importstr 'souvenirs.rules.yml').groups;

local dashboards = [
  importstr '../grafana/dashboards/souvenirs-active-users.json',
  importstr '../grafana/dashboards/souvenirs-exporter.json',
  importstr '../grafana/dashboards/souvenirs-growth.json',
  importstr '../grafana/dashboards/souvenirs-segments.json',
];

// Thresholds are recorded as series with this prefix
local prefix = 'souvenirs:threshold:';

// A threshold may be a number, or a query such as 'scalar(...)'; null for no threshold
local expr(value) =
  if value == null then 'vector(0) > 0'
  else if std.isString(value) then value
  // %d, because %g keeps only six digits
  else 'vector(' + (if std.floor(value) == value then '%d' else '%g') % value + ')';

{
  _config+:: {
    // The jobs to watch from their first scrape, as matchers of the metric `up`. A site is a job
    targetSelector: 'job=~"souvenirs"',
    // More matchers for each query in the dashboards, such as 'cluster="eu"'
    dashboardSelector: '',
    // Explained in souvenirs.rules.yml. null: no threshold, and so no alert
    thresholds: {
      drop_ratio: 0.5,
      normal_ratio: 0.6,
      floor_users: 50,
      no_activity_floor_users: 10,
      stickiness_ratio: 0.8,
      stickiness_floor_users: 200,
      new_floor_users: 10,
      churn_ratio: 2,
      churn_floor_users: 50,
      collection_ratio: 0.8,
      collection_age_seconds: 900,
      rollup_lag_seconds: 7200,
      write_errors_per_second: 0,
      failed_ratio: 0.05,
      seats: null,
      seats_ratio: 0.9,
    },
    // Different thresholds for single jobs, such as { shop: { drop_ratio: 0.3 } }
    jobThresholds: {},
    // Jobs to silence, such as ['shop']
    outOfService: [],
    // Runbook URLs consist of this prefix and the alert's name in lower case
    runbookURLPrefix: 'https://github.com/appsembler/django-souvenirs/blob/master/docs/alerts.md#',
  },

  local config = self._config,

  local thresholdRules(rule) =
    local name = std.substr(rule.record, std.length(prefix), std.length(rule.record));
    [rule { expr: expr(config.thresholds[name]) }] + [
      { record: rule.record, labels: { job: job }, expr: expr(config.jobThresholds[job][name]) }
      for job in std.objectFields(config.jobThresholds)
      if std.objectHas(config.jobThresholds[job], name)
    ],

  local configured(rule) =
    if std.objectHas(rule, 'alert') then
      [rule { annotations+: { runbook_url: config.runbookURLPrefix + std.asciiLower(rule.alert) } }]
    else if std.startsWith(rule.record, prefix) then
      thresholdRules(rule)
    else if rule.record == 'souvenirs:site:out_of_service' then
      [rule] + [
        { record: rule.record, labels: { job: job }, expr: 'vector(1)' }
        for job in config.outOfService
      ]
    else if rule.record == 'instance:souvenirs_target:up' then
      [rule { expr: std.strReplace(super.expr, 'up{job=~"souvenirs"}', 'up{%s}' % config.targetSelector) }]
    else
      [rule],

  // A name without a rule would have no effect, so it is an error
  local names = [
    std.substr(rule.record, std.length(prefix), std.length(rule.record))
    for group in groups
    for rule in group.rules
    if std.objectHas(rule, 'record') && std.startsWith(rule.record, prefix)
  ],
  local given = std.flatMap(
    std.objectFields, [config.thresholds] + std.objectValues(config.jobThresholds)
  ),
  local unknown = std.setDiff(std.set(given), std.set(names)),
  assert unknown == [] :
         'There is no threshold %s. Use one of %s.' % [std.join(', ', unknown), std.join(', ', names)],

  // A single group for the alerts and the recording rules that they use, so that they are evaluated
  // in order and at the same instant
  prometheusAlerts+:: {
    groups+: [
      group { rules: std.flatMap(configured, group.rules) }
      for group in groups
    ],
  },

  prometheusRules+:: { groups+: [] },

  // Edits the JSON text of a dashboard, in which quotes are escaped
  local selected(text) =
    local quoted = std.escapeStringJson(config.dashboardSelector);
    local more = std.substr(quoted, 1, std.length(quoted) - 2);
    if more == '' then text
    else
      std.strReplace(
        std.strReplace(text, 'job=~\\"$job', more + ', job=~\\"$job'),
        'label_values(souvenirs_up, job)',
        'label_values(souvenirs_up{%s}, job)' % more
      ),

  grafanaDashboardFolder:: 'Souvenirs',

  grafanaDashboards+:: {
    [dashboard.uid + '.json']: dashboard
    for dashboard in [std.parseJson(selected(text)) for text in dashboards]
  },
}
