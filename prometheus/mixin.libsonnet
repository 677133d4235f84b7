// The alerts, recording rules and dashboards as a monitoring mixin, for Jsonnet 0.21 and later.
// With the default _config they are those of souvenirs.rules.yml and of ../grafana/dashboards, which
// are read here. Change _config where you import this file:
//
//     (import 'mixin.libsonnet') + { _config+:: { thresholds+: { seats: 500 } } }
//
// docs/grafana.md has the commands. Tests: tests/test_mixin.py.

local groups = std.parseYaml(importstr 'souvenirs.rules.yml').groups;

local dashboards = [
  importstr '../grafana/dashboards/souvenirs-active-users.json',
  importstr '../grafana/dashboards/souvenirs-exporter.json',
  importstr '../grafana/dashboards/souvenirs-growth.json',
  importstr '../grafana/dashboards/souvenirs-segments.json',
];

// Thresholds are recorded as series with this prefix
local prefix = 'souvenirs:threshold:';

// A threshold may be any query, such as 'scalar(...)'; null is none
local expr(value) =
  if value == null then 'vector(0) > 0'
  else if std.isString(value) then value
  // %d, since %g keeps six digits
  else 'vector(' + (if std.floor(value) == value then '%d' else '%g') % value + ')';

{
  _config+:: {
    // The jobs to watch from their first scrape, as matchers of the metric `up`. A site is a job
    targetSelector: 'job=~"souvenirs"',
    // Further matchers of each query in the dashboards, such as 'cluster="eu"'
    dashboardSelector: '',
    // What each is: souvenirs.rules.yml. null is no threshold, and so no alert
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
    // Other thresholds of some jobs, such as { shop: { drop_ratio: 0.3 } }
    jobThresholds: {},
    // Jobs without alerts, such as ['shop']
    outOfService: [],
    // What comes before the name of an alert, in lower case, in the address of its runbook
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

  // A name that no rule has would change nothing
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

  // One group has the alerts and what they compare, evaluated in order, at one instant
  prometheusAlerts+:: {
    groups+: [
      group { rules: std.flatMap(configured, group.rules) }
      for group in groups
    ],
  },

  prometheusRules+:: { groups+: [] },

  // In the text of a dashboard, where quotes are escaped
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
