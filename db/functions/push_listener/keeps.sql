-- revision 1
-- Whether "migrate --down --keep-tables" leaves a table that push-listener created.
create or replace function push_listener.keeps(p_table text) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_catalog.current_setting('push_listener.keep_tables', true) is not distinct from 'on'
    and not push_listener.adopted(p_table)
$$;
revoke all on function push_listener.keeps from public;
