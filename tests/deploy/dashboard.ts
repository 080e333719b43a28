// What Grafana's own types say of a dashboard, made strict: the test appends "satisfies Strict" to the JSON, so that
// a field that Grafana does not know is an error. Grafana's enums are named by their values in JSON.
import type { Dashboard, DataSourceRef, FieldConfig, Panel, RowPanel } from "@grafana/schema";
import type {
  FieldConfig as TimeSeriesField,
  Options as TimeSeriesOptions,
} from "@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts";
import type { Options as StatOptions } from "@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts";

type Json<T> = T extends string
  ? `${T}`
  : T extends object
    ? { [K in keyof T]: Json<T[K]> }
    : T;

type Target = {
  refId: string;
  datasource: DataSourceRef;
  expr: string;
  legendFormat: string;
  instant?: boolean;
  range?: boolean;
};

// The types of this panel are not in @grafana/schema; these are the options of public/app/plugins/panel/alertlist.
type AlertListOptions = {
  alertName: string;
  dashboardAlerts: boolean;
  alertInstanceLabelFilter: string;
  datasource: string;
  groupBy: string[];
  groupMode: "default" | "custom";
  maxItems: number;
  sortOrder: number;
  viewMode: "list" | "stat";
  stateFilter: { error: boolean; firing: boolean; noData: boolean; normal: boolean; pending: boolean };
};

type Common = Required<Pick<Panel, "id" | "title" | "description" | "datasource" | "gridPos">>;
type Shown<Type, Options, Custom> = Common & {
  type: Type;
  options: Json<Options>;
  targets: Target[];
  fieldConfig: {
    defaults: Json<Omit<FieldConfig, "custom">> & { unit: string; custom?: Json<Custom> };
    overrides: never[];
  };
};
type AlertList = Common & { type: "alertlist"; options: AlertListOptions };

export type Strict = Omit<Json<Dashboard>, "panels"> & {
  panels: (
    | Json<RowPanel>
    | Shown<"timeseries", TimeSeriesOptions, TimeSeriesField>
    | Shown<"stat", StatOptions, never>
    | AlertList
  )[];
};
