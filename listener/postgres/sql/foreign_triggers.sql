-- Whether the application has triggers that run after a settle has written to a table: they may change a row that this
-- service has written. Triggers that run before are left out, because most only fill a column; if one of them changes
-- another row, the settle of the second request finds out.
select exists (
  select from pg_catalog.pg_trigger t
    where not t.tgisinternal and t.tgenabled <> 'D'::"char" and t.tgtype::integer & 66 = 0
      and (t.tgrelid = 'public.push_notifications'::regclass::oid and t.tgtype::integer & 16 = 16
           or t.tgrelid = pg_catalog.to_regclass('public.push_delivery_logs')::oid and t.tgtype::integer & 4 = 4
           or t.tgrelid = pg_catalog.to_regclass('public.push_devices')::oid and t.tgtype::integer & 16 = 16)
      and (select f.pronamespace from pg_catalog.pg_proc f where f.oid = t.tgfoid)
        <> 'push_listener'::regnamespace::oid)
