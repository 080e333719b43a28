-- Whether the application has triggers that run after an update: they may change a row that this service has written.
select exists (
  select from pg_catalog.pg_trigger t
    where t.tgrelid = 'public.push_notifications'::regclass::oid and not t.tgisinternal and t.tgenabled <> 'D'::"char"
      and t.tgtype::integer & 16 = 16 and t.tgtype::integer & 66 = 0
      and (select f.pronamespace from pg_catalog.pg_proc f where f.oid = t.tgfoid)
        <> 'push_listener'::regnamespace::oid)
