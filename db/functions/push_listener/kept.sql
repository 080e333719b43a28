-- revision 1
create or replace function push_listener.kept()
  returns table (relation text, role text, privilege text, columns text[])
  language sql stable rows 10 set search_path = pg_catalog, pg_temp
as $$
  select b.relation, "substring"(b.name, '^(.*) [a-z]+$'), "substring"(b.name, ' ([a-z]+)$'), b.definition::text[]
    from push_listener.adoption_record b
    where b.kind = 'keep'
$$;
revoke all on function push_listener.kept from public;
comment on function push_listener.kept is
  'The privileges that roles of the application keep on adopted tables; columns is null for the whole table.';
