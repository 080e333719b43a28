-- Limits of connections, and how many connections exist. Every role may see these counts. -1 means no limit.
select pg_catalog.current_setting('max_connections')::integer as most,
       pg_catalog.current_setting('superuser_reserved_connections')::integer
         + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::integer as reserved,
       (select pg_catalog.sum(numbackends)::integer from pg_catalog.pg_stat_database) as used,
       d.datconnlimit as most_of_database,
       (select numbackends from pg_catalog.pg_stat_database s where s.datid = d.oid) as used_of_database,
       case when r.rolsuper then -1 else r.rolconnlimit end as most_of_role,
       (select pg_catalog.count(*)::integer from pg_catalog.pg_stat_activity a where a.usesysid = r.oid) as used_of_role,
       (select pg_catalog.count(*)::integer
          from pg_catalog.pg_stat_activity a
          where a.usesysid = r.oid and a.datid = d.oid
            and a.application_name in ('push-listener', 'push-listener doorbell', 'push-listener purge')) as ours
  from pg_catalog.pg_database d
  join pg_catalog.pg_roles r on r.rolname = current_user
  where d.datname = pg_catalog.current_database()
