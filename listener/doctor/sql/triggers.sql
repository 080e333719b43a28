-- Every trigger of push-listener on the tables that it shares with the application.
select pg_catalog.format('%I.%I', n.nspname, c.relname) as relation, pg_catalog.quote_ident(g.tgname) as name,
       g.tgenabled::text as enabled
  from pg_catalog.pg_trigger g
  join pg_catalog.pg_class c on c.oid = g.tgrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'public' and not g.tgisinternal and g.tgname like 'push\_listener\_%'
  order by 1, 2
