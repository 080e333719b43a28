-- The dead rows of the two tables that push-listener writes most, and what autovacuum does about them.
select pg_catalog.format('%I.%I', n.nspname, c.relname) as name, s.n_live_tup as live, s.n_dead_tup as dead,
       greatest(s.last_autovacuum, s.last_vacuum)::text as vacuumed_at,
       pg_catalog.current_setting('autovacuum')::boolean and pg_catalog.current_setting('track_counts')::boolean
         as runs_on_server,
       coalesce((select o.option_value::boolean
                   from pg_catalog.pg_options_to_table(c.reloptions) o
                   where o.option_name = 'autovacuum_enabled'), true) as runs_on_table,
       coalesce((select o.option_value::float8
                   from pg_catalog.pg_options_to_table(c.reloptions) o
                   where o.option_name = 'autovacuum_vacuum_threshold'),
                pg_catalog.current_setting('autovacuum_vacuum_threshold')::float8)
         + greatest(c.reltuples::float8, 0)
         * coalesce((select o.option_value::float8
                       from pg_catalog.pg_options_to_table(c.reloptions) o
                       where o.option_name = 'autovacuum_vacuum_scale_factor'),
                    pg_catalog.current_setting('autovacuum_vacuum_scale_factor')::float8) as threshold
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_stat_all_tables s on s.relid = c.oid
  where n.nspname = 'public' and c.relname in ('push_notifications', 'push_delivery_logs') and c.relkind = 'r'
  order by c.relname desc
