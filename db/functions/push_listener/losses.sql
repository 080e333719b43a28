-- revision 1
-- What "migrate --down" would lose of a table, in words; no row if nothing would be lost.
create or replace function push_listener.losses(p_table text) returns setof text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table constant regclass := pg_catalog.to_regclass(pg_catalog.format('public.%I', p_table));
  v_count bigint;
  found record;
begin
  if not push_listener.is_as_left(p_table) or push_listener.keeps(p_table) then
    return;
  end if;
  if not push_listener.adopted(p_table) then
    execute pg_catalog.format('select count(*) from (select from %s limit 1) one', v_table) into v_count;
    if v_count > 0 then
      return next pg_catalog.format('%I was created by push-listener and holds rows', p_table);
    end if;
    return;
  end if;
  -- Rows without a value that the application requires, and that restore_not_null() cannot fill in.
  for found in
    select b.name
      from push_listener.adoption_record b
      join pg_catalog.pg_attribute a on a.attrelid = v_table and a.attname = b.name
      join pg_catalog.pg_type t on t.oid = a.atttypid
      where b.kind = 'required' and b.relation = p_table and t.typcategory not in ('S', 'N', 'D')
        and (not a.atthasdef or exists (
          select from push_listener.adoption_record d
            join push_listener.adoption_record c on c.kind = 'column' and c.relation = p_table and c.name = d.name
            where d.kind = 'default' and d.relation = p_table and d.name = b.name))
      order by a.attnum
  loop
    execute pg_catalog.format('select count(*) from %s where %I is null', v_table, found.name) into v_count;
    if v_count > 0 then
      return next pg_catalog.format('%I has %s rows without %I, which the application requires', p_table, v_count, found.name);
    end if;
  end loop;
end
$$;
revoke all on function push_listener.losses from public;
