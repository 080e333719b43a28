-- revision 1
create or replace function push_listener.adopted(p_table text) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (select from push_listener.adoption_record b where b.kind = 'table' and b.relation = p_table)
$$;
revoke all on function push_listener.adopted from public;
