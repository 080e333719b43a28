-- revision 1
-- Sets storage parameters of a table, except those that the application has set.
create or replace function push_listener.set_storage_defaults(p_table text, p_storage jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.format('public.%I', p_table)::regclass;
  found record;
begin
  for found in
    select s.key, s.value
      from pg_catalog.jsonb_each_text(p_storage) s
      where not exists (
        select from pg_catalog.pg_class c, pg_catalog.pg_options_to_table(c.reloptions) o
          where c.oid = v_table and o.option_name = s.key)
  loop
    insert into push_listener.adoption_record (kind, relation, name) values ('storage', p_table, found.key);
    execute pg_catalog.format('alter table %s set (%I = %s)', v_table, found.key, found.value);
  end loop;
end
$$;
revoke all on function push_listener.set_storage_defaults from public;
