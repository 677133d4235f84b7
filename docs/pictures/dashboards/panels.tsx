// Draws panels of a dashboard with Grafana's components. window.PICTURE has:
//   panels: as in the dashboard's JSON; series: by panel id, a list of {refId, name, points};
//   from, to: the range in milliseconds; light: the theme.
import {createRoot} from 'react-dom/client';
import {createTheme, FieldType, getDisplayProcessor, ThemeContext, toDataFrame} from '@grafana/data';
import {BigValue, BigValueColorMode, BigValueGraphMode, BigValueTextMode, GlobalStyles, PanelChrome, TimeSeries} from '@grafana/ui';

const {panels, series, from, to, light} = (window as any).PICTURE;
const theme = createTheme({colors: {mode: light ? 'light' : 'dark'}});
const COLUMN = 50, ROW = 38, GAP = 8;

function configOf(panel: any, one: any): any {
  const {defaults, overrides} = panel.fieldConfig;
  const config = {...defaults, custom: {...defaults.custom}, displayName: one.name};
  for (const {matcher, properties} of overrides) {
    const subject = matcher.id === 'byFrameRefID' ? one.refId : one.name;
    const regexp = /^\/(.*)\/$/.exec(matcher.options);
    if (regexp ? !new RegExp(regexp[1]).test(subject) : matcher.options !== subject) { continue; }
    for (const {id, value} of properties) {
      const [first, second] = id.split('.');
      if (second) { config[first][second] = value; } else { config[first] = value; }
    }
  }
  return config;
}

function framesOf(panel: any) {
  return series[panel.id].map((one: any, seriesIndex: number) => {
    const frame = toDataFrame({refId: one.refId, name: one.name, fields: [
      {name: 'Time', type: FieldType.time, values: one.points.map((p: any) => p[0] * 1000), config: {}},
      {name: 'Value', type: FieldType.number, values: one.points.map((p: any) => p[1] === null ? null : +p[1]), config: configOf(panel, one)},
    ]});
    for (const field of frame.fields) {
      const known = field.values.filter((value: any) => value !== null);
      const [min, max] = [Math.min(...known), Math.max(...known)];
      field.state = {seriesIndex, range: {min, max, delta: max - min}, displayName: one.name};
      field.display = getDisplayProcessor({field, theme, timeZone: 'utc'});
    }
    return frame;
  });
}

function Stat({panel, width, height}: any) {
  const [frame] = framesOf(panel);
  const noValue = {text: panel.fieldConfig.defaults.noValue ?? 'No data', numeric: NaN, color: theme.colors.success.text};
  const [time, field] = frame?.fields ?? [];
  const value = field ? {...field.display(field.values.at(-1)), title: ''} : noValue;
  const graph = frame && panel.options.graphMode === 'area';
  return <BigValue width={width} height={height} theme={theme} value={value} textMode={BigValueTextMode.Value}
    colorMode={BigValueColorMode.Value} graphMode={graph ? BigValueGraphMode.Area : BigValueGraphMode.None}
    sparkline={graph ? {x: time, y: field} : undefined} />;
}

function Graph({panel, width, height}: any) {
  const range: any = {from: {valueOf: () => from}, to: {valueOf: () => to}};
  const same = (builder: any) => builder;
  return <TimeSeries frames={framesOf(panel)} width={width} height={height} timeZone="utc" timeRange={range}
    structureRev={1} legend={panel.options.legend} tweakScale={same} tweakAxis={same} />;
}

function Panel({panel}: any) {
  const {x, y, w, h} = panel.gridPos, width = w * COLUMN - GAP, height = h * ROW - GAP;
  const place: any = {position: 'absolute', left: x * COLUMN, top: y * ROW, width, height};
  if (panel.type === 'row') {
    return <div style={{...place, color: theme.colors.text.primary, fontWeight: 500, paddingTop: 8}}>{panel.title}</div>;
  }
  const Body = panel.type === 'stat' ? Stat : Graph;
  return <div style={place}><PanelChrome title={panel.title} width={width} height={height}>
    {(innerWidth: number, innerHeight: number) => <Body panel={panel} width={innerWidth} height={innerHeight} />}
  </PanelChrome></div>;
}

createRoot(document.getElementById('root')!).render(
  <ThemeContext.Provider value={theme}><GlobalStyles />
    <div style={{position: 'relative'}}>{panels.map((panel: any) => <Panel key={panel.id} panel={panel} />)}</div>
  </ThemeContext.Provider>);
